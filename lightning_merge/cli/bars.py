"""Progress bars with the remaining time, for interactive terminals."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_merge.core.progress import Advance

WORTH_SHOWING = 1.0
"""Seconds before a loop shows a bar."""


@contextmanager
def bar(total: int, what: str) -> Iterator[Advance]:
    """Show a bar on stderr if it is a terminal; only the first process shows one."""
    from torch import distributed  # so that quick commands do not wait for torch
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no monitor thread: merging forks
    first = not distributed.is_initialized() or distributed.get_rank() == 0
    hidden = None if first else True
    with tqdm(
        total=total, desc=what, leave=False, delay=WORTH_SHOWING, disable=hidden, dynamic_ncols=True
    ) as shown:
        yield shown.update
