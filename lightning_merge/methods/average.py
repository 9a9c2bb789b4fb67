"""Averaging the experts' weights."""

from dataclasses import dataclass
from typing import ClassVar

from lightning_merge.core.facts import Facts
from lightning_merge.core.vectors.task_vectors import TaskVectors, sum_tasks
from lightning_merge.methods.base import MergeMethod, Resources, Update


@dataclass(frozen=True)
class Average(MergeMethod):
    """Mean of the experts' weights, (1/K) sum_k theta_k. Needs nothing but weights.

    Reference: Wortsman et al. 2022, "Model soups".

    Examples:
        >>> import torch
        >>> experts = {"a": {"w": torch.tensor([2.0, 0, 1])}, "b": {"w": torch.tensor([4.0, 2, 1])}}
        >>> Average()({"w": torch.zeros(3)}, experts)["w"]
        tensor([3., 1., 1.])
    """

    facts: ClassVar[Facts] = Facts(reference="Wortsman et al. 2022", arxiv="2203.05482", readings=1)

    def plan(self, vectors: TaskVectors, resources: Resources) -> Update:
        """Return the function that averages task vectors."""
        return lambda span, tile: sum_tasks(tile).div_(len(tile))
