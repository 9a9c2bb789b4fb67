"""Work on many tensors at once, with results that do not depend on the number of processes.

The workers are processes because merging consists of calls so short that threads would mostly
wait for each other at Python's interpreter lock. They are forked, so nothing has to be sent to
them; they share open files with their parent, but no memory that is written to.
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

    Torch uses one thread in each process: tiles that fit the cache gain nothing from more, and
    every sum is taken in the same order whatever the number of jobs.

    Args:
        function: Called once per item, in any process. Changes that it makes in memory are lost.
        items: Its arguments; each free process takes the next one.
        jobs: Number of processes, including this one; a worker's own calls start no others.
        what: What the calls do, for the progress bar.

    Returns:
        The results in the order of the items.

    Raises:
        Exception: The first one that a call raised; the other workers are ended.

    Examples:
        >>> run_each(lambda size: torch.ones(size).sum().item(), [3, 1, 2], jobs=2)
        [3.0, 1.0, 2.0]
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
            shown = 0
            while True:
                if _in_worker and os.getppid() != parent:  # the parent was killed
                    os._exit(1)
                with position.get_lock():
                    index, position.value = position.value, position.value + 1
                begun = min(index, len(todo))
                advance(begun - shown)
                shown = begun
                if index >= len(todo):
                    return results
                try:
                    results[index] = function(todo[index])
                except BaseException:
                    position.value = len(todo)  # no process takes another one
                    raise

        with _workers(context, work, jobs - 1) as connections:
            with progress(len(todo), what) as advance:
                results = work(advance)
            for connection in connections:
                results |= _received(connection)
    return [results[index] for index in range(len(todo))]


@contextmanager
def _workers(context: Any, work: Callable[[], Any], number: int) -> Iterator[list[Connection]]:
    """Fork processes that send the result of `work`; end them when the block is left."""
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
    except KeyboardInterrupt:  # the parent receives it as well
        os._exit(1)
    sender.send_bytes(pickle.dumps(answer))  # `send` would leave tensors in this process


def _received(connection: Connection) -> Any:
    try:
        results, fault = pickle.loads(connection.recv_bytes())
    except EOFError:
        raise InputError(
            "jobs: a worker was killed, perhaps because memory ran out: use fewer jobs"
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
