"""Consensus merging: keep the parameters that the TALL masks of several tasks share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_merge.core.checks import require_finite, require_in
from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Facts
from lightning_merge.core.vectors.task_vectors import TaskVectors, sum_tasks
from lightning_merge.core.vectors.tiles import Span
from lightning_merge.methods.base import Resources
from lightning_merge.methods.linear import Directing, Direction, Linear


@dataclass(frozen=True)
class Consensus(Linear):
    """Sum of task vectors where enough tasks claim the parameter. Needs nothing but weights.

    A parameter is in the TALL mask of task k if |tau_k| > lambda_k |sum_j tau_j - tau_k|, that is,
    if the other tasks do not drown its change. The update is scale * sum_j tau_j for entries in at
    least `agree` masks and zero elsewhere, where the change is selfish (of one task) or
    catastrophic (of none).

    Reference: Wang et al. 2024, "Localizing Task Information for Improved Model Merging and
    Compression".

    Args:
        agree: Number of masks that must contain an entry, at most the number of experts; 0 is
            task arithmetic. For a single expert its own mask is enough.
        tall: Lambda of the masks, one for all tasks or one per task. The paper chooses each from
            0.2, 0.3, ..., 0.6 on validation data.
        scale: Factor of the update.

    Raises:
        InputError: A value is out of bounds, a task has no lambda, or several experts are fewer
            than `agree`.

    Examples:
        >>> experts = {"a": {"w": torch.tensor([1.0, 1.0])}, "b": {"w": torch.tensor([1.0, 0.0])}}
        >>> Consensus(scale=1.0)({"w": torch.zeros(2)}, experts)["w"]
        tensor([2., 0.])
    """

    agree: int = 2
    tall: float | Mapping[str, float] = 0.4
    scale: float = 0.3
    facts: ClassVar[Facts] = Facts(reference="Wang et al. 2024", arxiv="2405.07813", readings=1)

    def __post_init__(self) -> None:
        if not isinstance(self.agree, int) or self.agree < 0:
            raise InputError(f"agree={self.agree!r} must be a whole number of experts, 0 or more")
        by_task = self.tall if isinstance(self.tall, Mapping) else {"": self.tall}
        for task, value in by_task.items():
            require_in("[0, inf]", **{f"tall[{task!r}]" if task else "tall": value})
        require_finite(scale=self.scale)

    def direct(self, vectors: TaskVectors, resources: Resources) -> Directing:
        """Look up the lambda of each task; masks are computed tile by tile."""
        if self.agree > len(vectors) > 1:
            raise InputError(
                f"agree={self.agree}: there are {len(vectors)} experts, so nothing would be kept; "
                f"choose at most {len(vectors)}"
            )
        thresholds, needed = self._thresholds(vectors.tasks), min(self.agree, len(vectors))

        def direct(span: Span, tile: Tensor) -> Direction:
            total = sum_tasks(tile)
            claims = tall_masks(tile, total, thresholds).sum(0)
            return Direction(total.mul_(claims >= needed))

        return direct

    def _thresholds(self, tasks: Sequence[str]) -> Tensor:
        if not isinstance(self.tall, Mapping):
            return torch.full((len(tasks),), self.tall, dtype=torch.float64)
        if missing := [task for task in tasks if task not in self.tall]:
            raise InputError(
                f"tall: no lambda for {', '.join(missing)}, only for {', '.join(self.tall)}"
            )
        return torch.tensor([self.tall[task] for task in tasks], dtype=torch.float64)


def tall_masks(task_vectors: Tensor, multi_task: Tensor, thresholds: Tensor) -> Tensor:
    """Return the entries whose change a task needs, |tau_k| > lambda_k |tau - tau_k|, bool [K, n].

    Args:
        task_vectors: Stack [K, n].
        multi_task: The merged task vector tau, [n].
        thresholds: Lambda of every task, [K].

    Examples:
        >>> vectors = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
        >>> tall_masks(vectors, vectors.sum(0), torch.tensor([0.4, 0.4]))
        tensor([[ True,  True],
                [ True, False]])
    """
    foreign = (multi_task - task_vectors).abs_().mul_(thresholds[:, None].to(task_vectors))
    return task_vectors.abs() > foreign
