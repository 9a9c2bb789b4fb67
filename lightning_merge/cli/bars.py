"""What `--verbose` shows: every line as it comes, and a bar for every loop."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_merge.cli.display import Silent
from lightning_merge.core.progress import Advance

WORTH_SHOWING = 1.0
"""Seconds before a loop shows a bar."""


class Bars(Silent):
    """One bar on stderr for each loop, if that is a terminal.

    Lightning shows its own lines and bars, and the logger of details shows notes.
    """

    verbose = True

    def warn(self, message: str) -> None:
        """Show a warning."""
        print(f"warning: {message}", file=sys.stderr)

    @contextmanager
    def loop(self, total: int, what: str, unit: str = "", done: int = 0) -> Iterator[Advance]:
        """Show a bar while the loop runs."""
        from tqdm import tqdm  # so that quick commands do not wait for it

        tqdm.monitor_interval = 0  # no monitor thread: merging forks
        with tqdm(
            total=total or None, initial=done, desc=what, leave=False, delay=WORTH_SHOWING,
            disable=None, dynamic_ncols=True,
        ) as shown:  # fmt: skip
            yield lambda steps, items=0: shown.update(steps)
