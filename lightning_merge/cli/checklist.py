"""The display on a terminal: finished stages as lines, below them what runs and what follows."""

import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from lightning_merge.cli.display import Lines, Loop, done_share, time_left
from lightning_merge.cli.run_log import RunLog

INTERVAL = 0.5
"""Seconds between two drawings."""
WORTH_SHOWING = 1.0
"""Seconds before a loop without a stage is shown."""
BAR = 20
"""Greatest width of the bar."""
MARKS = {"done": "✓", "skipped": "·", "stopped": "✗", "runs": "▶", "bar": "━", "rest": "─"}
PLAIN_MARKS = {"done": "+", "skipped": "-", "stopped": "x", "runs": ">", "bar": "#", "rest": "."}
"""The same for terminals that cannot show them."""
STYLES = {"done": "green", "skipped": "dim", "stopped": "red"}


class Checklist(Lines):
    """The stages of a run on a terminal; only what runs and what follows is ever redrawn.

    It draws when steps are told and has no thread of its own, because merging forks.

    Args:
        log: The log of the run.
    """

    def __init__(self, log: RunLog) -> None:
        super().__init__(log)
        self._still = False
        self._console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self._marks = MARKS if self._console.encoding.startswith("utf") else PLAIN_MARKS
        self._live: Live | None = None
        self._drawn, self._width = 0.0, 0

    def write(self, message: str) -> None:
        """Show one line above what runs."""
        self._console.print(Text(message), soft_wrap=True)

    def finished(self, end: str, what: str, told: str) -> None:
        """Show the end of a stage above what runs."""
        line = Text(f"{self._marks[end]} ", STYLES[end])
        line.append(f"{what:<{self._width}}  ", "dim" if end == "skipped" else "")
        self._console.print(line.append(told, "dim"), no_wrap=True, overflow="ellipsis")

    def draw(self, *, now: bool = False) -> None:
        """Show what runs and what follows, at most every `INTERVAL` seconds."""
        if self._still or not (self.running or self.loops):
            self.close()
            return
        seen = time.perf_counter()
        if not self.running and self.loops[0].seconds < WORTH_SHOWING:
            return
        if now or seen - self._drawn >= INTERVAL:
            self._drawn = seen
            self._open().update(Group(*self._rows()), refresh=True)

    def plan(self, stages: Sequence[str]) -> None:
        """Take the stages to come, and align what is told of them."""
        super().plan(stages)
        self._width = min(40, max(map(len, self.to_come), default=0))

    def hold_still(self) -> None:
        """Draw no more; finished stages are still told."""
        self._still = True
        self.close()

    def close(self) -> None:
        """Remove what is drawn and give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _open(self) -> Live:
        if self._live is None:
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True,
                redirect_stdout=sys.stdout.isatty(),
            )  # fmt: skip
            self._live.start()
        return self._live

    def _rows(self) -> Iterator[Text]:
        """Yield what runs, then as many stages to come as the terminal has lines for."""
        yield self._current()
        room = max(0, self._console.height - 5)
        for what in self.to_come[:room]:
            yield Text(f"  {what}", "dim", no_wrap=True, overflow="ellipsis")
        if more := len(self.to_come[room:]):
            yield Text(f"  and {more} more", "dim")
        if left := time_left(self):
            yield Text(f"  {left}", "dim")

    def _current(self) -> Text:
        """Return the line of what runs: where its loops are, a bar and the speed."""
        stage = self.running.what if self.running else ""
        *outer, inner = self.loops or [Loop(0, "", "")]
        words = [f"{loop.what} {min(loop.done + 1, loop.total)}/{loop.total}" for loop in outer]
        words.append(inner.what.removeprefix("measuring "))
        line = Text(no_wrap=True, overflow="ellipsis")
        if stage:
            line.append(f"{self._marks['runs']} ", "cyan").append(stage, "bold").append("  ")
        line.append("  ".join(filter(None, words)))
        rest = self._measures(inner)
        if any(loop.total for loop in self.loops):
            width = max(6, min(BAR, self._console.width - 4 - len(line) - len(rest)))
            filled = round(width * done_share(self.loops))
            line.append("  ").append(self._marks["bar"] * filled, "cyan")
            line.append(self._marks["rest"] * (width - filled), "dim")
        return line.append(rest)

    def _measures(self, inner: Loop) -> str:
        share = any(loop.total for loop in self.loops)
        said = f"  {100 * done_share(self.loops):3.0f} %" if share else ""
        if inner.items:
            said += f"  {inner.items / inner.seconds:.0f} {inner.unit}/s"
        return said
