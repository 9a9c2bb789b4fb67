"""Progress of loops; the library shows nothing unless a bar is installed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Advance = Callable[[int], object]
"""Takes the number of steps done since the last call."""
Bar = Callable[[int, str], AbstractContextManager[Advance]]
"""Shows a loop, given its number of steps and its name."""


@contextmanager
def _unseen(total: int, what: str) -> Iterator[Advance]:
    yield lambda steps: None


_bar: Bar = _unseen


def show_progress(bar: Bar) -> None:
    """Show all loops of this process from now on.

    Args:
        bar: Entered when a loop begins, left when it ends.

    Examples:
        >>> @contextmanager
        ... def announced(total, what):
        ...     print(f"{what}: {total} steps")
        ...     yield lambda steps: None
        >>> show_progress(announced)
        >>> sum(tracked([1, 2, 3], "adding"))
        adding: 3 steps
        6
        >>> show_progress(_unseen)
    """
    global _bar
    _bar = bar


def progress(total: int, what: str) -> AbstractContextManager[Advance]:
    """Return a context that shows a loop and takes the steps done.

    Args:
        total: Number of steps.
        what: What the loop does, such as "merging tensors".

    Examples:
        >>> with progress(2, "merging tensors") as advance:
        ...     for step in range(2):
        ...         _ = advance(1)
    """
    return _bar(total, what)


def tracked(items: Sequence[Item], what: str) -> Iterable[Item]:
    """Yield the items of a loop and show its progress; see `progress`.

    Args:
        items: What the loop runs over.
        what: What the loop does.

    Examples:
        >>> [name.upper() for name in tracked(["a", "b"], "naming")]
        ['A', 'B']
    """
    with progress(len(items), what) as advance:
        for item in items:
            yield item
            advance(1)
