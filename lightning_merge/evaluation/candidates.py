"""What is compared: named weights on disk."""

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
            of weights per task (the individual experts).
        figure: File of a picture of them, if there is one.
        cost: What merging or learning took, and what they take.
        note: What a reader of the number must know.
        bound: Not a merged network: base, individual experts.
        transductive: Unlabelled test images took part in making them.
        options: Candidates to choose from on the validation split, by what distinguishes them;
            the best one's files take the places of `weights` and `figure`, and what it took
            that of the others.
    """

    name: str
    weights: Path | Mapping[str, Path]
    figure: Path | None = None
    cost: Cost = field(default_factory=Cost)
    note: str = ""
    bound: bool = False
    transductive: bool = False
    options: Mapping[str, "Candidate"] | None = None

    def file(self, task: str) -> Path:
        """Return the weights that answer for a task."""
        return self.weights if isinstance(self.weights, Path) else self.weights[task]


BOUNDS = ("base", "individual", "multi_task")


def bounds(
    base: Path, experts: Mapping[str, Path], multi_task: Path | None = None
) -> Sequence[Candidate]:
    """Return the rows that enclose every merged network.

    Args:
        base: The pretrained network.
        experts: Task -> its expert.
        multi_task: One network trained on all tasks together, if there is one.
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
