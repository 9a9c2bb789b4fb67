"""run.log of a run folder: everything that the display leaves out."""

import logging
from collections.abc import Callable
from pathlib import Path

NAME = "run.log"
TALKATIVE = ("lightning", "lightning.pytorch", "lightning.fabric")
"""Loggers that write to stderr by handlers of their own."""


class RunLog(logging.Handler):
    """Appends records to the log of a run folder, once the folder may be written to.

    Records wait in memory until then: a command that is refused leaves no log.

    Args:
        process: Number of this process, which the lines of all but the first name.
    """

    def __init__(self, process: str = "0") -> None:
        super().__init__(logging.INFO)
        mark = f"process {process}: " * (process != "0")
        self.setFormatter(logging.Formatter(f"%(asctime)s {mark}%(name)s: %(message)s"))
        self.folder: Path | None = None
        self._waiting: list[str] = []
        self._kept = False
        self._last: logging.LogRecord | None = None
        self._taken: list[tuple[logging.Handler, Callable[[logging.LogRecord], bool]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or let it wait; one that comes by several handlers counts once."""
        if record is self._last:
            return
        self._last = record
        self._waiting.append(self.format(record))
        if self._kept:
            self._write()

    def add(self, message: str) -> None:
        """Log a line that nothing else takes."""
        self.emit(logging.makeLogRecord({"name": "lightning_merge", "msg": message}))

    def take_over(self, *, shown: bool) -> None:
        """Take the lines of Lightning, which must have been imported.

        Args:
            shown: Whether its own handlers still show them; they always show errors.
        """

        def seen(record: logging.LogRecord) -> bool:
            self.handle(record)
            return shown or record.levelno >= logging.ERROR

        for name in TALKATIVE:
            for handler in logging.getLogger(name).handlers:
                if type(handler) is logging.StreamHandler:
                    handler.addFilter(seen)
                    self._taken.append((handler, seen))

    def give_back(self) -> None:
        """Leave Lightning's handlers as they were."""
        for handler, seen in self._taken:
            handler.removeFilter(seen)
        self._taken.clear()

    def keep(self) -> None:
        """Write what has waited, and all that follows."""
        self._kept = self.folder is not None and self.folder.is_dir()
        if self._kept:
            self._write()

    def _write(self) -> None:
        assert self.folder is not None
        with (self.folder / NAME).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(f"{line}\n" for line in self._waiting))
        self._waiting.clear()
