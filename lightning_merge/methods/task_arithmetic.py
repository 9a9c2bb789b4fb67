"""Task arithmetic: add the sum of the task vectors to the base."""

from dataclasses import dataclass
from typing import ClassVar

from lightning_merge.core.checks import require_finite
from lightning_merge.core.facts import Facts
from lightning_merge.core.vectors.task_vectors import TaskVectors, sum_tasks
from lightning_merge.methods.base import Resources
from lightning_merge.methods.linear import Directing, Direction, Linear


@dataclass(frozen=True)
class TaskArithmetic(Linear):
    """Scaled sum of task vectors, theta_0 + scale * sum_k tau_k. Needs nothing but weights.

    Reference: Ilharco et al. 2023, "Editing models with task arithmetic".

    Args:
        scale: Factor of the summed task vectors; 1/K gives the average.

    Raises:
        InputError: The scale is not finite.

    Examples:
        >>> import torch
        >>> base = {"w": torch.tensor([1.0, 1.0])}
        >>> experts = {"a": {"w": torch.tensor([3.0, 1.0])}, "b": {"w": torch.tensor([1.0, 2.0])}}
        >>> TaskArithmetic(scale=0.5)(base, experts)["w"]
        tensor([2.0000, 1.5000])
    """

    scale: float = 0.3
    facts: ClassVar[Facts] = Facts(reference="Ilharco et al. 2023", arxiv="2212.04089", readings=1)

    def __post_init__(self) -> None:
        require_finite(scale=self.scale)

    def direct(self, vectors: TaskVectors, resources: Resources) -> Directing:
        """Return the function that sums task vectors."""
        return lambda span, tile: Direction(sum_tasks(tile))
