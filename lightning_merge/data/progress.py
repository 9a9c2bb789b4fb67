"""A bar for loops over so many images that a user would wonder."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track

T = TypeVar("T")
WORTH_SHOWING = 2000


def progress(items: Sequence[T], description: str) -> Iterable[T]:
    """Return the items, with a bar on stderr that vanishes, when there are many of them.

    Of several processes the first one alone shows a bar.
    """
    if len(items) < WORTH_SHOWING or getattr(rank_zero_only, "rank", False):
        return items
    return track(items, description, console=Console(stderr=True), transient=True)
