"""What is compared: named weights on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Candidate:
    """Weights that take part in the comparison.

    Args:
        name: Row of the table.
        weights: One file for all tasks, of weights or of a network of a network method, or one
            of weights per task (the individual experts).
        figure: File of a picture of them, if there is one.
        seconds: Time that merging or learning took.
        peak_memory: Bytes that making them took at the most, where they were measured.
        extra_parameters: Numbers stored beside those of one network.
        inference_cost: Passes of the base that an image takes.
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
    seconds: float = 0.0
    peak_memory: int | None = None
    extra_parameters: int = 0
    inference_cost: float = 1.0
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
