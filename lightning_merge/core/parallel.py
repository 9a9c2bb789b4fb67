"""Work on many tensors at once, with results that do not depend on how many.

The workers are processes: merging consists of calls so short that threads would mostly wait for
each other at Python's interpreter lock. They are forked, so that nothing has to be sent to them,
and share open files with their parent, but no memory that is written to.
"""

import multiprocessing
import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from lightning_merge.core.errors import InputError
from lightning_merge.core.progress import progress, tracked

Item = TypeVar("Item")
Result = TypeVar("Result")
_in_worker = False


def run_each(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    jobs: int = 1,
    what: str = "working",
) -> list[Result]:
    """Call a function on every item, in several processes, without gradients.

    Torch computes on one thread in each: tiles that fit the cache gain nothing from more, and
    every sum is taken in one order, whatever the number of jobs.

    Args:
        function: Called once per item, in any process. What it changes in memory is lost.
        items: What to call it on; whoever is free takes the next one.
        jobs: Number of processes, this one included; a worker's own calls use no others.
        what: What the calls do, to show how far they are.

    Returns:
        The results in the order of the items.

    Raises:
        Exception: The first one that a call has raised; the other workers are ended.
    """
    todo = list(items)
    jobs = 1 if _in_worker else min(jobs, len(todo))
    with _one_thread(), torch.no_grad():
        if jobs < 2:
            return [function(item) for item in (todo if _in_worker else tracked(todo, what))]
        context = multiprocessing.get_context("fork")
        position, parent = context.Value("q", 0), os.getpid()

        def work(advance: Callable[[int], object] = lambda _: None) -> dict[int, Result]:
            results: dict[int, Result] = {}
            told = 0
            while True:
                if _in_worker and os.getppid() != parent:  # it was killed
                    os._exit(1)
                with position.get_lock():
                    index, position.value = position.value, position.value + 1
                begun = min(index, len(todo))
                advance(begun - told)
                told = begun
                if index >= len(todo):
                    return results
                try:
                    results[index] = function(todo[index])
                except BaseException:
                    position.value = len(todo)  # nobody begins another one
                    raise

        with _workers(context, work, jobs - 1) as connections:
            with progress(len(todo), what) as advance:
                results = work(advance)
            for connection in connections:
                results |= _received(connection)
    return [results[index] for index in range(len(todo))]


@contextmanager
def _workers(context: Any, work: Callable[[], Any], number: int) -> Iterator[list[Connection]]:
    """Fork processes that send what `work` gives; end them when the block is left."""
    pipes = [context.Pipe(duplex=False) for _ in range(number)]
    workers = [context.Process(target=_worker, args=(work, sender)) for _, sender in pipes]
    try:
        with warnings.catch_warnings():  # Python 3.12 on forks beside threads; torch's are idle
            warnings.simplefilter("ignore", DeprecationWarning)
            for worker in workers:
                worker.start()
        for _, sender in pipes:
            sender.close()
        yield [receiver for receiver, _ in pipes]
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.kill()
                worker.join()


def _worker(work: Callable[[], Any], sender: Connection) -> None:
    global _in_worker
    _in_worker = True
    try:
        answer: Any = (work(), None)
    except Exception as fault:
        answer = (None, fault)
    except KeyboardInterrupt:  # which the parent has got as well
        os._exit(1)
    sender.send_bytes(pickle.dumps(answer))  # `send` would have tensors stay in this process


def _received(connection: Connection) -> Any:
    try:
        results, fault = pickle.loads(connection.recv_bytes())
    except EOFError:
        raise InputError(
            "jobs: a worker was killed, maybe for want of memory: use fewer jobs"
        ) from None
    if fault is not None:
        raise fault
    return results


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
