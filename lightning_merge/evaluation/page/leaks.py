"""The leak guard: what was fitted or chosen on the examples that were measured."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lightning_merge.core.errors import InputError
from lightning_merge.evaluation.page.runs import Run
from lightning_merge.evaluation.results import CandidateResult

PARTS = {
    "train": "experts and heads were trained",
    "validation": "hyperparameters were chosen",
    "coefficients": "coefficients were learned",
}
"""Part of a task -> what happened on it."""


class Leak(NamedTuple):
    """Test examples of a run that it has fitted or chosen something on.

    Attributes:
        run: Name of the run.
        task: What was measured.
        part: Task and part with the same content, such as "mnist (train)".
        how: What happened on that part.
        rows: Candidates that depend on it.

    Examples:
        >>> how = PARTS["train"]
        >>> Leak("seed0", "mnist", "copy (train)", how, ("ties",)).words
        'seed0: experts and heads were trained on the test examples of mnist, as copy (train)'
    """

    run: str
    task: str
    part: str
    how: str
    rows: Sequence[str]

    @property
    def words(self) -> str:
        """One sentence, without its full stop."""
        return f"{self.run}: {self.how} on the test examples of {self.task}, as {self.part}"


def leaks(runs: Sequence[Run]) -> list[Leak]:
    """Return where the hashes of what was fitted or chosen and of what was measured meet.

    Digests are of whole parts. Single examples are compared when a run begins, which refuses those
    that are on both sides. Coefficients of a transductive row are learned on test examples, which
    every table says; a transductive run records them apart.

    Args:
        runs: The runs.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> record = {"train": {"digest": "c0ffee"}, "test": {"digest": "c0ffee"}}
        >>> run = Run(
        ...     "seed0", Results(["mnist"], {"ties": ties}, 0, versions={}),
        ...     splits={"tasks": {"mnist": record}},
        ... )
        >>> [(found.task, found.part, found.rows) for found in leaks([run])]
        [('mnist', 'mnist (train)', ('ties',))]
    """
    return [found for run in runs for found in _leaks_of(run)]


def _leaks_of(run: Run) -> Iterator[Leak]:
    for part, how in PARTS.items():
        used = {digest: task for task, digest in run.parts(part)}
        rows = tuple(
            name for name, row in run.results.candidates.items() if part == "train" or _merged(row)
        )
        for task, digest in run.measured.items():
            if digest in used and rows:
                yield Leak(run.name, task, f"{used[digest]} ({part})", how, rows)


def _merged(row: CandidateResult) -> bool:
    return not row.bound


def refuse(found: Sequence[Leak], allowed: bool) -> None:
    """Refuse a report with leaks.

    Args:
        found: What `leaks` returned.
        allowed: Whether the rows are to be marked instead.

    Raises:
        InputError: There are leaks that are not allowed.

    Examples:
        >>> refuse([], allowed=False)
    """
    if found and not allowed:
        rows = ", ".join(dict.fromkeys(row for leak in found for row in leak.rows))
        sentences = "; ".join(leak.words for leak in found)
        raise InputError(
            f"runs: {sentences}. This leaks into the rows {rows}. Measure again on examples that "
            "nothing was fitted or chosen on, or mark the rows by --allow-leak true"
        )
