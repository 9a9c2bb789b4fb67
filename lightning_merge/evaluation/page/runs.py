"""What a run folder holds, for its report."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_merge.core.checkpoints.files import read_text
from lightning_merge.core.errors import InputError
from lightning_merge.evaluation.correctness import Correctness
from lightning_merge.evaluation.results import Results


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: What the user calls it.
        results: Its results.
        right: What its candidates answered correctly; None for results alone.
        splits: Its splits.json: by task, the digest of each part; empty if it has none.
        record: Its run.json: options and hashes; empty if it has none.
        config: Its config.yaml; "" if it has none.
        metrics: Its metrics.csv; "" if it has none.
        figures: Its figures/*.png.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> Run("mine", Results(["mnist"], {"ties": ties}, seed=0, versions={})).measured
        {}
    """

    name: str
    results: Results
    right: Correctness | None = None
    splits: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""
    metrics: str = ""
    figures: Sequence[Path] = ()

    @classmethod
    def read(cls, given: str | Path) -> "Run":
        """Read a run folder, or a results.json alone.

        Args:
            given: The folder or the file.

        Raises:
            InputError: It has no results, or a file in it is broken.

        Examples:
            >>> Run.read("runs/none")
            Traceback (most recent call last):
            lightning_merge.core.errors.InputError: runs: 'runs/none' has no results: ...
        """
        path = Path(given)
        file = path / "results.json" if path.is_dir() else path
        if not file.exists():
            raise InputError(
                f"runs: {str(given)!r} has no results: {file} does not exist; finish the run"
            )
        folder, results = file.parent, Results.from_json(file)
        right = Correctness.read(folder)
        if file.name != "results.json":  # a copy, whose neighbours may belong to another run
            return cls(str(given), results, right)
        return cls(
            str(given),
            results,
            right,
            _json(folder / "splits.json"),
            _json(folder / "run.json"),
            _text(folder / "config.yaml"),
            _text(folder / "metrics.csv"),
            sorted(folder.glob("figures/*.png")),
        )

    @property
    def measured(self) -> dict[str, str]:
        """Data set -> digest of the test examples that it was measured on, as far as recorded."""
        if self.right is not None:  # the digest, and what corrupts the images
            return {task: digest.split(" ")[0] for task, digest in self.right.digests.items()}
        return dict(self.parts("test"))

    def parts(self, part: str) -> Iterator[tuple[str, str]]:
        """Yield the tasks that have a part, such as "train", and its digest.

        Args:
            part: Key in the record of a task.

        Raises:
            InputError: The record has another form.
        """
        try:
            for task, record in self.splits.get("tasks", {}).items():
                if part in record:
                    yield task, record[part]["digest"]
        except (AttributeError, KeyError, TypeError) as fault:
            raise InputError(
                f"splits.json of {self.name} is not the record of a division ({fault!r}): "
                "remove it; hashes are not compared without it"
            ) from fault


def check_same_images(runs: Sequence[Run]) -> None:
    """Check that all runs were measured on the same test examples, as far as they say.

    Args:
        runs: At least one.

    Raises:
        InputError: Two were not, which are named with the task.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> check_same_images([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))])
    """
    first = runs[0]
    for run in runs[1:]:
        before, now = first.measured, run.measured
        if other := [task for task in before if now.get(task, before[task]) != before[task]]:
            raise InputError(
                f"runs: {run.name} was measured on other test examples of {', '.join(other)} than "
                f"{first.name}: give runs of the same test examples, and the others their own table"
            )


def _text(file: Path) -> str:
    return read_text(file) if file.exists() else ""


def _json(file: Path) -> dict[str, Any]:
    """Return a record; an empty one if there is no file."""
    try:
        found = json.loads(_text(file) or "{}")
    except ValueError as fault:
        raise InputError(f"{file} is not JSON ({fault}): restore it, or remove it") from fault
    if not isinstance(found, dict):
        raise InputError(f"{file} is not a record: restore it, or remove it")
    return found
