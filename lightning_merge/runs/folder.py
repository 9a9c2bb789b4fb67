"""The folder of a run: what its results depend on, what it refuses to lose, and how it is taken."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_merge.core.errors import InputError
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.evaluation.results import Results
from lightning_merge.runs import record


class RunFolder:
    """A folder that knows what its results depend on (`run.json`).

    `resolve` finds what the run depends on and refuses to lose the results of another one. Until
    `take`, nothing in the folder is touched.

    Args:
        path: The folder; it need not exist.
        option: That names it on the command line, for messages.
        keep: Refuse to replace results of another configuration.

    Attributes:
        before: What the run depended on that was here; empty without one.
        now: What this run depends on, after `resolve`.

    Examples:
        >>> from tempfile import mkdtemp
        >>> folder = RunFolder(Path(mkdtemp()), "folder")
        >>> folder.resolve({"seed": 0}, make=lambda: None, files=lambda: [])
        >>> folder.is_unchanged
        False
    """

    def __init__(self, path: Path, option: str, keep: bool = True) -> None:
        self.path, self._option, self._keep = path, option, keep
        self.before: record.Record = {}
        self.now: dict[str, Any] = {}

    @property
    def results(self) -> Path:
        """The file of the results, which is there once a run is finished."""
        return self.path / "results.json"

    @property
    def last(self) -> Path:
        """The checkpoint that a stopped run goes on from."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def coefficients(self) -> Path:
        """The learned coefficients."""
        return self.path / "coefficients.safetensors"

    def merged(self, name: str) -> Path:
        """Return the file of a merged network."""
        return self.path / "merged" / f"{name}.safetensors"

    @property
    def recorded(self) -> record.Record:
        """What the run depended on that was here last."""
        return record.read(self.path / "run.json")

    @property
    def is_unchanged(self) -> bool:
        """Whether the run depends on the very things that the one before depended on."""
        return self.before == self.now

    def is_complete(self, *more: Path) -> bool:
        """Whether the results are there, the networks that they are of, and some other files."""
        if not self.results.exists():
            return False
        candidates = Results.from_json(self.results).candidates.items()
        merged = [self.merged(name) for name, found in candidates if not found.bound]
        return all(file.exists() for file in [*merged, *more])

    def resolve(
        self,
        described: Mapping[str, Any],
        make: Callable[[], None],
        files: Callable[[], Iterable[str]],
        growing: Iterable[str] = (),
    ) -> None:
        """Find what the run depends on, and make the files that are missing.

        Args:
            described: All that is known before files are made, by name.
            make: Makes the files.
            files: Names them afterwards.
            growing: Names of numbers that may be larger than before: no results are lost then.

        Raises:
            InputError: Results of another configuration, or of other files, would be lost.
        """
        self.before, self.now = self.recorded, record.stored(described)
        grown = {n: self.now[n] for n in growing if self.before.get(n, 0) < self.now[n]}
        before = {**self.before, **grown}
        self._refuse({name: before.get(name) for name in self.now})
        make()
        self.now |= record.stored(record.describe_files(files()))
        self._refuse(before)

    def take(
        self, data: MergeDataModule, save: Callable[[Path], None], forget: Iterable[str] = ()
    ) -> None:
        """Let what earlier runs left give way, now that nothing can be refused any more.

        Args:
            data: Whose splits are recorded.
            save: Writes the configuration into a file.
            forget: Files that give way beside the results.
        """
        for name in ("results.json", "results.md", *forget):
            remove(self.path / name)
        data.write_splits(self.path / "splits.json")
        save(self.path / "config.yaml")
        record.write(self.now, self.path / "run.json")

    def _refuse(self, before: record.Record) -> None:
        if not self._keep or not self.results.exists():
            return
        if changed := record.differences(before, self.now):
            raise InputError(
                f"{self.path} holds the results of another configuration or other inputs: "
                f"{changed}. Give another --{self._option}, or --overwrite true to replace them"
            )


def remove(path: Path) -> None:
    """Remove a file, or the folder of a sharded checkpoint, if it is there.

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
