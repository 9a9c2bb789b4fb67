"""Work on many tensors at once, with results that do not depend on how many."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_each(
    function: Callable[[Item], Result], items: Iterable[Item], jobs: int | None = None
) -> list[Result]:
    """Call a function on every item, on several threads, without gradients.

    Inside, torch computes on one thread per call: tiles that fit the cache gain nothing from
    more, and every sum is taken in one order, whatever the number of jobs.

    Args:
        function: Called once per item; the calls must not depend on each other.
        items: What to call it on.
        jobs: Number of threads; as many as torch uses by default.

    Returns:
        The results in the order of the items. The first exception ends the others and is raised.
    """
    jobs = jobs or torch.get_num_threads()

    @torch.no_grad()
    def call(item: Item) -> Result:
        return function(item)

    with _one_thread_per_call():
        if jobs == 1:
            return [call(item) for item in items]
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(call, items))


@contextmanager
def _one_thread_per_call() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
