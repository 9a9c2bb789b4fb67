"""Accuracies of one pass over a part of the data."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_merge.evaluation.derived import JOINT
from lightning_merge.evaluation.results import averaged_tasks


class Measured(NamedTuple):
    """Accuracies of one pass over a part of the data.

    Attributes:
        accuracy: Fraction of right predictions by task.
        samples: Number of evaluated images by task.
        images: Number of all images by task.
        right: Whether each test image was classified correctly, by task, bool [rows, n], see
            `Answers`; a row for each network.
        joint: Fraction of right predictions among the classes of all tasks, if it was measured.
        distance: Distance of the features from the base's by task, if it was measured.
        beside: What the field measures beside accuracy, by column, such as "wikiqa AUC".

    Examples:
        >>> measured = Measured({"cars": 0.5}, {"cars": 4}, {"cars": 8}, {}, {}, {}, {})
        >>> measured.average, measured.shares
        (0.5, '4 of 8 images of cars')
    """

    accuracy: dict[str, float]
    samples: dict[str, int]
    images: dict[str, int]
    right: dict[str, Tensor]
    joint: dict[str, float]
    distance: dict[str, float]
    beside: dict[str, float]

    @property
    def average(self) -> float:
        """Mean accuracy over all tasks, with equal weights."""
        return self.mean([*self.accuracy])

    def share(self, task: str) -> str:
        """Return how many images of a task were evaluated; "" if all were."""
        seen, there = self.samples[task], self.images[task]
        return f"{seen} of {there} images" if seen < there else ""

    @property
    def shares(self) -> str:
        """The shares of all tasks that were not evaluated completely."""
        return ", ".join(f"{s} of {task}" for task in self.samples if (s := self.share(task)))

    def joined(self, other: "Measured") -> "Measured":
        """Return this pass and one over other tasks as one."""
        fields: Iterable[tuple[Any, Any]] = zip(self, other, strict=True)
        return Measured(*({**own, **more} for own, more in fields))

    @staticmethod
    def mean_of(passes: Sequence["Measured"]) -> "Measured":
        """Return the means of passes over the same images by different networks."""

        def means(values: Sequence[dict[str, float]]) -> dict[str, float]:
            return {t: fmean(v[t] for v in values if t in v) for t in values[0]}

        first = passes[0]
        right = {task: torch.cat([p.right[task] for p in passes]) for task in first.right}
        return first._replace(
            right=right,
            accuracy=means([one.accuracy for one in passes]),
            distance=means([one.distance for one in passes]),
            beside=means([one.beside for one in passes]),
        )

    def averages(self, tasks: Sequence[str], out_of_domain: Sequence[str]) -> dict[str, float]:
        """Return the averages of what was measured, by name: see `averaged_tasks`, and joint.

        Args:
            tasks: Tasks of the domain.
            out_of_domain: Data sets out of domain; either may not have been measured.
        """
        groups = averaged_tasks([*tasks, *out_of_domain], out_of_domain=out_of_domain)
        known = {name: [t for t in group if t in self.accuracy] for name, group in groups.items()}
        found = {name: self.mean(group) for name, group in known.items() if group}
        return {**found, JOINT: fmean(self.joint.values())} if self.joint else found

    def mean(self, tasks: Sequence[str]) -> float:
        """Return the mean accuracy over some tasks."""
        return sum(self.accuracy[task] for task in tasks) / len(tasks)
