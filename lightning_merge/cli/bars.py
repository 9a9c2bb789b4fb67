"""Bars with the time left, for people who wait in front of a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_merge.core.progress import Advance

WORTH_SHOWING = 1.0
"""Seconds that a loop takes before anybody is told of it."""


@contextmanager
def bar(total: int, what: str) -> Iterator[Advance]:
    """Show a loop on stderr if that is a terminal, by the first process alone."""
    from torch import distributed  # where nothing takes long, nothing waits for torch
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread of its own: merging forks
    first = not distributed.is_initialized() or distributed.get_rank() == 0
    hidden = None if first else True
    with tqdm(
        total=total, desc=what, leave=False, delay=WORTH_SHOWING, disable=hidden, dynamic_ncols=True
    ) as shown:
        yield shown.update
