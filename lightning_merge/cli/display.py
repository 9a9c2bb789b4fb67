"""What a person sees while a command runs; here, one line for each finished stage."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from lightning_merge.cli.run_log import RunLog
from lightning_merge.core.progress import Advance, Display, Say

SHORTEST = 2.0
"""Seconds after which the time left is estimated."""


@dataclass
class Loop:
    """A loop that runs."""

    total: int
    what: str
    unit: str
    before: int = 0
    done: int = 0
    items: int = 0
    share: float = 0.0
    started: float = field(default_factory=lambda: time.perf_counter())

    @property
    def seconds(self) -> float:
        """Time since it began."""
        return time.perf_counter() - self.started


@dataclass
class Stage:
    """A stage that runs."""

    what: str
    said: str = ""
    started: float = field(default_factory=lambda: time.perf_counter())

    @property
    def seconds(self) -> float:
        """Time since it began."""
        return time.perf_counter() - self.started


class Silent(Display):
    """Shows nothing, and keeps the log; for all processes but the first.

    Args:
        log: The log of the run.

    Attributes:
        verbose: Whether Lightning shows its own lines and bars.
    """

    verbose: ClassVar[bool] = False

    def __init__(self, log: RunLog) -> None:
        self.log = log

    def log_into(self, folder: Path) -> None:
        """Take the folder of the log."""
        self.log.folder = self.log.folder or folder

    def keep_log(self) -> None:
        """Write the log from now on."""
        self.log.keep()

    def warn(self, message: str) -> None:
        """Show a warning; only the first process does."""

    def close(self) -> None:
        """Leave the terminal clean."""


class Lines(Silent):
    """One line on stderr for each finished stage, without control characters.

    Stages that have nothing to do are told once another one begins: where nothing at all is done,
    they would only repeat that.

    Args:
        log: The log of the run.

    Attributes:
        to_come: Names of the stages that have not begun.
        took: Kind of a stage -> seconds that each took.
    """

    def __init__(self, log: RunLog) -> None:
        super().__init__(log)
        self.to_come: list[str] = []
        self.took: dict[str, list[float]] = {}
        self.running: Stage | None = None
        self.loops: list[Loop] = []
        self._skipped: list[tuple[str, str]] = []

    def plan(self, stages: Sequence[str]) -> None:
        """Take the stages to come, unless one runs, of which these are parts."""
        if self.running is None:
            self.to_come = [*stages]

    def skip(self, what: str, why: str) -> None:
        """Tell that a stage has nothing to do."""
        if self.running is None:
            self._forget(what)
            self._skipped.append((what, why))

    @contextmanager
    def stage(self, what: str) -> Iterator[Say]:
        """Tell that a stage is finished, or has stopped."""
        if self.running is not None:
            yield lambda said: None
            return
        self._tell_skipped()
        self._forget(what)
        self.running = running = Stage(what)
        end = "stopped"

        def say(said: str) -> None:
            running.said = said

        try:
            self.draw(now=True)
            yield say
            end = "done"
        finally:
            self.running = None
            self.took.setdefault(_kind(what), []).append(running.seconds)
            told = [running.said, "stopped" if end == "stopped" else "", _time(running.seconds)]
            self.finished(end, what, ", ".join(filter(None, told)))
            self.draw(now=True)

    @contextmanager
    def loop(self, total: int, what: str, unit: str = "", done: int = 0) -> Iterator[Advance]:
        """Count the steps of a loop."""
        running = Loop(total, what, unit, done, done)
        self.loops.append(running)

        def advance(steps: int, items: int = 0, /) -> None:
            running.done += steps
            running.items += items
            self.draw()

        try:
            self.draw()
            yield advance
        finally:
            self.loops.remove(running)
            self.draw(now=self.running is None and not self.loops)

    def note(self, message: str) -> None:
        """Show one line."""
        self._tell_skipped()
        self.write(message)

    def warn(self, message: str) -> None:
        """Show a warning."""
        self.write(f"warning: {message}")

    def write(self, message: str) -> None:
        """Write one line."""
        print(message, file=sys.stderr)

    def finished(self, end: str, what: str, told: str) -> None:
        """Show the end of a stage: "done", "skipped" or "stopped"."""
        self.write(f"{what}: {told}")

    def draw(self, *, now: bool = False) -> None:
        """Show what runs; lines have nothing to show until it ends."""

    def _tell_skipped(self) -> None:
        for skipped in self._skipped:
            self.finished("skipped", *skipped)
        self._skipped.clear()

    def _forget(self, what: str) -> None:
        if what in self.to_come:
            del self.to_come[: self.to_come.index(what) + 1]


class LastLines(Lines):
    """Nothing but warnings, errors and the last lines of a command."""

    def note(self, message: str) -> None:
        """Leave it to the log."""

    def finished(self, end: str, what: str, told: str) -> None:
        """Leave it to the log."""


def done_share(loops: Sequence[Loop]) -> float:
    """Return how much of nested loops is done, the outermost first, in [0, 1]."""
    share = 0.0
    for loop in reversed(loops):
        share = min(1.0, (loop.done + share) / loop.total) if loop.total else 0.0
        share = loop.share = max(share, loop.share)  # several loops may follow within one step
    return share


def time_left(shown: Lines) -> str:
    """Return the time left of all stages to come, or how much of it is known; "" if nothing is.

    Stages of a kind, such as the experts, are taken to last as long as those before them. A loop
    that holds no other may be one of several in its stage.
    """
    if shown.running is None or shown.running.seconds < SHORTEST:
        return ""
    stages = [_rest(shown, shown.running), *(_expected(shown, what) for what in shown.to_come)]
    open_end = None in stages or len(shown.loops) == 1
    total = sum(seconds or 0.0 for seconds in stages)
    return "" if total < 1 else "more than " * open_end + f"{_time(total)} left"


def _rest(shown: Lines, stage: Stage) -> float | None:
    """Return the seconds left of the stage that runs; None if they are unknown."""
    if shown.loops and (outer := shown.loops[0]).total:
        share, before = done_share(shown.loops), outer.before / outer.total
        return outer.seconds * (1 - share) / (share - before) if share > before else None
    known = _expected(shown, stage.what)
    return None if known is None else max(0.0, known - stage.seconds)


def _expected(shown: Lines, what: str) -> float | None:
    took = shown.took.get(_kind(what))
    return sum(took) / len(took) if took and " of " in what else None


def _kind(what: str) -> str:
    return what.rpartition(" of ")[0] or what


def _time(seconds: float) -> str:
    """Return a duration as text.

    Examples:
        >>> _time(3.21), _time(61), _time(4000)
        ('3.2 s', '1 min 1 s', '1 h 6 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left} s" if minutes else f"{left} s"
    return f"{minutes // 60} h {minutes % 60} min"
