"""Candidates of a comparison: named weights on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_merge.core.cost import Cost


@dataclass(frozen=True)
class Candidate:
    """Weights that take part in the comparison.

    Args:
        name: Row of the table.
        weights: One file for all tasks, of weights or of a network of a network method, or one
            file of weights per task (the individual experts).
        figure: File of a figure, if there is one.
        cost: Cost of making the candidate and of using it.
        note: What a reader of the numbers must know.
        bound: Whether it is a reference rather than a merged network, such as the base.
        transductive: Whether unlabelled test examples were used to make it.
        seen: What it was made with and its network is told, see `shown_to`; None if unknown.
        searched: What distinguishes the options that it was chosen from -> their average accuracy
            on the held-out examples.
        options: Candidates to choose from on the validation split, by what distinguishes them.
            The files and cost of the best one replace `weights`, `figure` and `cost`.

    Examples:
        >>> ties = Candidate("ties", Path("ties.safetensors"))
        >>> ties.file("mnist").name
        'ties.safetensors'
    """

    name: str
    weights: Path | Mapping[str, Path]
    figure: Path | None = None
    cost: Cost = field(default_factory=Cost)
    note: str = ""
    bound: bool = False
    transductive: bool = False
    seen: Sequence[str] | None = None
    searched: Mapping[str, float] | None = None
    options: Mapping[str, "Candidate"] | None = None

    def file(self, task: str) -> Path:
        """Return the file of the weights that are tested on a task."""
        return self.weights if isinstance(self.weights, Path) else self.weights[task]


BASE, EXPERTS, MULTI_TASK = BOUNDS = ("base", "individual", "multi_task")
"""Names of the references."""


def bounds(
    base: Path, experts: Mapping[str, Path], multi_task: Path | None = None
) -> Sequence[Candidate]:
    """Return the reference rows that bound every merged network.

    Args:
        base: The pretrained network.
        experts: Task -> its expert.
        multi_task: One network trained on all tasks together, if there is one.

    Examples:
        >>> rows = bounds(Path("base.pt"), {"mnist": Path("mnist.pt")})
        >>> [(row.name, row.file("mnist").name) for row in rows]
        [('base', 'base.pt'), ('individual', 'mnist.pt')]
    """
    files = (base, experts, multi_task)
    notes = (
        "pretrained, not merged",
        "each task by its own expert",
        "one network trained on all seen tasks together, not merged",
    )
    return [
        Candidate(name, file, note=note, bound=True)
        for name, file, note in zip(BOUNDS, files, notes, strict=True)
        if file is not None
    ]
