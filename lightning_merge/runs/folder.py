"""The run folder: what its results depend on, and how those of other runs are protected."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_merge.core.errors import InputError
from lightning_merge.core.progress import display
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.evaluation import correctness
from lightning_merge.evaluation.results import Results
from lightning_merge.runs import record


class RunFolder:
    """A run folder that records what its results depend on (`run.json`).

    `resolve` determines what the run depends on and refuses to overwrite the results of another
    run. Nothing in the folder is touched before `take`.

    Args:
        path: The folder; it need not exist.
        option: Command-line option that names it, for messages.
        keep: Refuse to replace results of another configuration.

    Attributes:
        before: What the previous run in this folder depended on; empty if there was none.
        now: What this run depends on, set by `resolve`.

    Examples:
        >>> from tempfile import mkdtemp
        >>> folder = RunFolder(Path(mkdtemp()), "folder")
        >>> folder.resolve({"seed": 0}, make=lambda: None, inputs=dict)
        >>> folder.is_unchanged
        False
    """

    def __init__(self, path: Path, option: str, keep: bool = True) -> None:
        self.path, self._option, self._keep = path, option, keep
        self.before: record.Record = {}
        self.now: dict[str, Any] = {}

    @property
    def results(self) -> Path:
        """The results file, which exists once a run has finished."""
        return self.path / "results.json"

    @property
    def last(self) -> Path:
        """The checkpoint from which a stopped run resumes."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def coefficients(self) -> Path:
        """The file of the learned coefficients."""
        return self.path / "coefficients.safetensors"

    def merged(self, name: str) -> Path:
        """Return the file of a merged network."""
        return self.path / "merged" / f"{name}.safetensors"

    @property
    def recorded(self) -> record.Record:
        """What the last run in this folder depended on."""
        return record.read(self.path / "run.json")

    @property
    def is_unchanged(self) -> bool:
        """Whether the run depends on exactly what the previous one depended on."""
        return self.before == self.now

    def is_complete(self, *more: Path) -> bool:
        """Whether the results, the networks they were measured on and `more` all exist."""
        if not self.results.exists():
            return False
        candidates = Results.from_json(self.results).candidates.items()
        merged = [self.merged(name) for name, found in candidates if not found.bound]
        return all(file.exists() for file in [*merged, *more])

    def resolve(
        self,
        described: Mapping[str, Any],
        make: Callable[[], None],
        inputs: Callable[[], Mapping[str, Any]],
        growing: Iterable[str] = (),
    ) -> None:
        """Determine what the run depends on, and make missing files.

        Args:
            described: Everything known before files are made, by name.
            make: Makes missing files.
            inputs: Describes the files afterwards, by name.
            growing: Names of numbers that may grow between runs without losing results.

        Raises:
            InputError: Results of another configuration, or of other files, would be lost.
        """
        self.before, self.now = self.recorded, record.stored(described)
        grown = {n: self.now[n] for n in growing if self.before.get(n, 0) < self.now[n]}
        before = {**self.before, **grown}
        self._refuse({name: before.get(name) for name in self.now})
        make()
        self.now |= record.stored(inputs())
        self._refuse(before)

    def take(
        self, data: MergeDataModule, save: Callable[[Path], None], forget: Iterable[str] = ()
    ) -> None:
        """Remove what earlier runs left and record this one, once every check has passed.

        Args:
            data: Data module whose splits are recorded.
            save: Writes the configuration into a file.
            forget: Files to remove besides the results.
        """
        for name in ("results.json", "results.md", "report.html", correctness.FILE, *forget):
            remove(self.path / name)
        data.write_splits(self.path / "splits.json")
        save(self.path / "config.yaml")
        record.write(self.now, self.path / "run.json")
        display().keep_log()

    def _refuse(self, before: record.Record) -> None:
        if not self._keep or not self.results.exists():
            return
        if changed := record.differences(before, self.now):
            raise InputError(
                f"{self.path} holds the results of another configuration or other inputs: "
                f"{changed}. Give another --{self._option}, or --overwrite true to replace them"
            )


def remove(path: Path) -> None:
    """Remove a file, or the folder of a sharded checkpoint, if it exists.

    Examples:
        >>> folder = Path("shards")
        >>> folder.mkdir()
        >>> remove(folder)
        >>> folder.exists()
        False
    """
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
