"""What is compared: named weights on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Candidate:
    """Weights that take part in the comparison.

    Args:
        name: row of the table.
        weights: one file for all tasks, or one per task (the individual experts).
        figure: file of a picture of them, if there is one.
        seconds: time that merging or learning took.
        note: what a reader of the number must know.
        bound: not a merged network: base, individual experts.
        transductive: unlabelled test images took part in making them.
        options: candidates to choose from on the validation split, by what distinguishes them;
            the best one's files take the places of `weights` and `figure`, and its time that
            of `seconds`.
    """

    name: str
    weights: Path | Mapping[str, Path]
    figure: Path | None = None
    seconds: float = 0.0
    note: str = ""
    bound: bool = False
    transductive: bool = False
    options: Mapping[str, "Candidate"] | None = None

    def file(self, task: str) -> Path:
        """Return the weights that answer for a task."""
        return self.weights if isinstance(self.weights, Path) else self.weights[task]


BOUNDS = ("base", "individual")


def bounds(base: Path, experts: Mapping[str, Path]) -> Sequence[Candidate]:
    """Return the rows that enclose every merged network: the base and the experts."""
    names = iter(BOUNDS)
    return (
        Candidate(next(names), base, note="pretrained, not merged", bound=True),
        Candidate(next(names), experts, note="each task by its own expert", bound=True),
    )
