"""What a command is doing: stages, loops and notes; the library shows nothing by itself."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Say = Callable[[str], object]
"""Takes what a finished stage has done, in a few words."""

details = logging.getLogger("lightning_merge")
"""Takes every note and detail."""


class Advance(Protocol):
    """Takes the number of steps done since the last call, and of images or texts in them.

    Examples:
        >>> with progress(2, "", "images") as advance:
        ...     advance(1, 32)
        ...     advance(1, 20)
    """

    def __call__(self, steps: int, items: int = 0, /) -> object:
        """Count them."""


def _uncounted(steps: int, items: int = 0, /) -> None:
    pass


class Display:
    """Shows what a command does; this one shows nothing.

    Examples:
        >>> class Announced(Display):
        ...     @contextmanager
        ...     def loop(self, total, what, unit="", done=0):
        ...         print(f"{what}: {total} steps")
        ...         yield lambda steps, items=0: None
        >>> with shown_by(Announced()):
        ...     sum(tracked([1, 2, 3], "adding"))
        adding: 3 steps
        6
    """

    def plan(self, stages: Sequence[str]) -> None:
        """Take the stages to come, in order; more may follow."""

    def stage(self, what: str) -> AbstractContextManager[Say]:
        """Return a context that shows a stage; one within another is a part of it."""
        return _unseen(lambda said: None)

    def skip(self, what: str, why: str) -> None:
        """Take a stage that has nothing to do."""

    def loop(
        self, total: int, what: str, unit: str = "", done: int = 0
    ) -> AbstractContextManager[Advance]:
        """Return a context that shows a loop, possibly within another one."""
        return _unseen(_uncounted)

    def note(self, message: str) -> None:
        """Show one line to the user."""

    def hold_still(self) -> None:
        """Leave the terminal to somebody else's bar."""

    def log_into(self, folder: Path) -> None:
        """Take the folder for the log; only the first one counts."""

    def keep_log(self) -> None:
        """Write the log from now on, with all that has been told so far."""


@contextmanager
def _unseen(given: Item) -> Iterator[Item]:
    yield given


_display = Display()
_whose = ""


def display() -> Display:
    """Return what shows the work of this process.

    Examples:
        >>> type(display()).__name__
        'Display'
    """
    return _display


@contextmanager
def shown_by(other: Display) -> Iterator[None]:
    """Show the work of this process by another display within the block.

    Examples:
        >>> with shown_by(Display()):
        ...     note("seen by nobody")
    """
    global _display
    before, _display = _display, other
    try:
        yield
    finally:
        _display = before


@contextmanager
def stages_of(whose: str) -> Iterator[None]:
    """Put a word before the names of all stages in the block.

    Args:
        whose: The word.

    Examples:
        >>> with stages_of("teachers'"), stage("base"):  # shown as "teachers' base"
        ...     pass
    """
    global _whose
    before, _whose = _whose, f"{whose} "
    try:
        yield
    finally:
        _whose = before


def stage(what: str) -> AbstractContextManager[Say]:
    """Return a context that shows a stage and takes what it has done.

    Args:
        what: Name of the stage, such as "expert of mnist".

    Examples:
        >>> with stage("heads") as say:
        ...     say("2 tasks")
    """
    return _display.stage(_whose + what)


def skipped(what: str, why: str) -> None:
    """Show that a stage has nothing to do.

    Args:
        what: Name of the stage.
        why: Why it has nothing to do, such as "there already".

    Examples:
        >>> skipped("base", "there already")
    """
    _display.skip(_whose + what, why)
    detail(f"{what}: {why}")


def note(message: str) -> None:
    """Show one line to the user, and log it.

    Examples:
        >>> note("going on from run/checkpoints/last.ckpt")
    """
    _display.note(message)
    detail(message)


def detail(message: str) -> None:
    """Log one line, which the user sees in the log alone.

    Examples:
        >>> detail("scale=0.3: 77.2 %")
    """
    details.info(message)


def progress(
    total: int, what: str, unit: str = "", done: int = 0
) -> AbstractContextManager[Advance]:
    """Return a context that shows a loop and takes the steps done.

    Args:
        total: Number of steps; 0 if it is unknown.
        what: What the loop does, such as "merging tensors".
        unit: What its items are, "images" or "texts".
        done: Steps done by an earlier command that this one continues.

    Examples:
        >>> with progress(2, "merging tensors") as advance:
        ...     for step in range(2):
        ...         advance(1)
    """
    return _display.loop(total, what, unit, done)


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
