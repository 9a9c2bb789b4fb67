"""How far a loop has got, for whoever shows it; a library shows nothing unless asked to."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Advance = Callable[[int], object]
"""Takes how many steps were done since the last call."""
Bar = Callable[[int, str], AbstractContextManager[Advance]]
"""Shows a loop of so many steps under a name."""


@contextmanager
def _unseen(total: int, what: str) -> Iterator[Advance]:
    yield lambda steps: None


_bar: Bar = _unseen


def show_progress(bar: Bar) -> None:
    """Show all loops of this process from now on.

    Args:
        bar: Entered when a loop begins, left when it ends.
    """
    global _bar
    _bar = bar


def progress(total: int, what: str) -> AbstractContextManager[Advance]:
    """Return what shows a loop while it is entered, and takes the steps done.

    Args:
        total: Number of steps.
        what: What the loop does, such as "merging tensors".
    """
    return _bar(total, what)


def tracked(items: Sequence[Item], what: str) -> Iterable[Item]:
    """Yield the items of a loop that is shown; see `progress`."""
    with progress(len(items), what) as advance:
        for item in items:
            yield item
            advance(1)
