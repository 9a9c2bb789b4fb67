"""The metrics of a run in one CSV file, to which a resumed run appends."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_merge.core.checkpoints.files import atomic_write


class MetricsFile(Logger):
    """Write metrics.csv in the run folder: one row per step, one column per metric.

    Rows of earlier sessions are kept, whereas Lightning's CSVLogger deletes them.

    Args:
        folder: The run folder.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> for step in range(2):  # two sessions
        ...     log = MetricsFile(folder)
        ...     log.log_metrics({"loss": 0.5}, step)
        ...     log.save()
        >>> print((folder / "metrics.csv").read_text(), end="")
        loss,step
        0.5,0
        0.5,1
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.file = folder / "metrics.csv"
        self._rows: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """Empty: the folder carries the name."""
        return ""

    @property
    def version(self) -> str:
        """Empty: a run has a single folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.file.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Buffer one row."""
        self._rows.append({**metrics, "step": step})

    @rank_zero_only
    def save(self) -> None:
        """Write the buffered rows; rewrite the whole file if there are new columns."""
        rows, self._rows = self._rows, []
        if not rows:
            return
        names = self._columns()
        if new := sorted(set().union(*rows).difference(names)):
            rows, names = [*self._read(), *rows], sorted([*names, *new])
            with atomic_write(self.file) as temporary:
                _write(temporary, names, rows, header=True)
        else:
            _write(self.file, names, rows, header=False)

    def finalize(self, status: str) -> None:
        """Write the remaining rows."""
        self.save()

    def _columns(self) -> list[str]:
        if not self.file.exists():
            return []
        with self.file.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file), [])

    def _read(self) -> list[dict[str, Any]]:
        if not self.file.exists():
            return []
        with self.file.open(newline="", encoding="utf-8") as file:
            return [*csv.DictReader(file)]


def _write(path: Path, names: list[str], rows: list[dict[str, Any]], *, header: bool) -> None:
    with path.open("w" if header else "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        if header:
            writer.writeheader()
        writer.writerows(rows)
