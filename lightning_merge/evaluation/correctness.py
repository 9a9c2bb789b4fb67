"""Which test examples every candidate of a run gets right, and their file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.evaluation.results import Results

FILE = "correct.safetensors"
"""Name of the file in a run folder; each tensor is named after candidate and task."""


@dataclass(frozen=True)
class Correctness:
    """One bit per test image, task and candidate.

    A pass that was cut short covers the first n images of a test split. Two runs have looked at
    the same images of a task if digest and n are equal.

    Attributes:
        digests: Task -> digest of its test split (images, labels and their order), and what
            corrupts the images, if anything does.
        right: Candidate -> task -> whether each image was classified correctly, bool [rows, n]. A
            cell that several networks share, and whose accuracy is their mean, has a row for each.

    Raises:
        InputError: Candidates differ in the tasks, or in the number of images of a task.

    Examples:
        >>> right = {"ties": {"pets": torch.tensor([[True, False, True]])}}
        >>> file = Correctness({"pets": "c0ffee"}, right).write(Path())
        >>> Correctness.read(file.parent).right["ties"]["pets"].tolist()
        [[True, False, True]]
    """

    digests: Mapping[str, str]
    right: Mapping[str, Mapping[str, Tensor]]

    def __post_init__(self) -> None:
        for name, cells in self.right.items():
            found = {task: bits.shape[1] for task, bits in cells.items()}
            if set(found) != set(self.digests) or any(found[t] != self.images(t) for t in found):
                raise InputError(
                    f"candidate {name!r} was measured on {found} images: measure every candidate "
                    f"on the same images of the tasks {list(self.digests)}"
                )

    def images(self, task: str) -> int:
        """Return the number of test examples of a task that were looked at."""
        return next(iter(self.right.values()))[task].shape[1]

    def fits(self, results: Results) -> bool:
        """Whether all accuracies of a run are the means of these bits."""
        return set(self.right) == set(results.candidates) and all(
            task in self.digests
            and row.samples[task] == self.images(task)
            and abs(float(self.right[name][task].double().mean()) - accuracy) < 1e-6
            for name, row in results.candidates.items()
            for task, accuracy in row.accuracy.items()
        )

    def write(self, folder: Path) -> Path:
        """Write the file of a run folder, whole or not at all, and return its path."""
        bits = {
            _key(name, task): torch.from_numpy(np.packbits(right.numpy(), axis=1))
            for name, cells in self.right.items()
            for task, right in cells.items()
        }
        tasks = {t: {"digest": d, "images": self.images(t)} for t, d in self.digests.items()}
        metadata = {"candidates": json.dumps([*self.right]), "tasks": json.dumps(tasks)}
        return save_checkpoint(bits, folder / FILE, metadata=metadata)

    @classmethod
    def read(cls, folder: Path) -> "Correctness | None":
        """Read the file of a run folder; None if there is none, as in folders of older versions.

        Raises:
            InputError: The file is damaged.
        """
        file = folder / FILE
        if not file.exists():
            return None
        stored = open_checkpoint(file)
        try:
            tasks = json.loads(stored.metadata["tasks"])
            right = {
                name: {
                    task: _unpacked(stored[_key(name, task)], entry["images"])
                    for task, entry in tasks.items()
                }
                for name in json.loads(stored.metadata["candidates"])
            }
            return cls({task: entry["digest"] for task, entry in tasks.items()}, right)
        except (KeyError, TypeError, ValueError) as fault:
            raise InputError(
                f"{file} is not a record of correct answers ({type(fault).__name__}: {fault}): "
                "remove it, and results.json to measure again"
            ) from fault


def _key(name: str, task: str) -> str:
    """Return the name of a cell's tensor; names that are not UTF-8 are escaped."""
    return json.dumps(f"{name}/{task}")[1:-1]


def _unpacked(packed: Tensor, images: int) -> Tensor:
    bits = np.unpackbits(packed.numpy(), axis=1, count=images)
    return torch.from_numpy(bits.astype(bool))
