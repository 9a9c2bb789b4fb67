"""Model Stock: interpolate between base and average by the angles between experts."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_merge.core.facts import Facts
from lightning_merge.core.vectors.sums import sum_over_tensor
from lightning_merge.core.vectors.task_vectors import TaskVectors, sum_tasks
from lightning_merge.core.vectors.tiles import Span
from lightning_merge.methods.base import MergeMethod, Resources, Update


@dataclass(frozen=True)
class ModelStock(MergeMethod):
    """theta_0 + t mean_k tau_k, with t of each tensor from angles. Needs nothing but weights.

    t = K cos / (1 + (K - 1) cos), where cos is the mean cosine between the task vectors of two
    experts for the tensor; the cosine with a zero vector counts as 0. Parallel experts are
    averaged (t = 1), orthogonal ones leave the base (t = 0). Experts that point away from each
    other give a negative t, bounded by -1. A single expert has t = 1. Takes two readings.

    It is meant for experts of one task with different seeds; task vectors of different tasks are
    nearly orthogonal, so the result stays close to the base.

    Reference: Jang et al. 2024, "Model Stock", equation 7. Its layers are tensors, as here.

    Examples:
        >>> base = {"parallel": torch.zeros(1), "orthogonal": torch.zeros(2)}
        >>> a = {"parallel": torch.tensor([2.0]), "orthogonal": torch.tensor([1.0, 0.0])}
        >>> b = {"parallel": torch.tensor([4.0]), "orthogonal": torch.tensor([0.0, 1.0])}
        >>> ModelStock()(base, {"a": a, "b": b})
        {'parallel': tensor([3.]), 'orthogonal': tensor([0., 0.])}
    """

    facts: ClassVar[Facts] = Facts(reference="Jang et al. 2024", arxiv="2403.19522", readings=2)

    def plan(self, vectors: TaskVectors, resources: Resources) -> Update:
        """Find the ratio t of every tensor."""
        values = vectors.each(vectors.names, lambda name: _ratio(vectors, name))
        ratios = dict(zip(vectors.names, values, strict=True))

        def update(span: Span, tile: Tensor) -> Tensor:
            return sum_tasks(tile).mul_(ratios[span.name] / len(tile))

        return update


def _ratio(vectors: TaskVectors, name: str) -> float:
    """Return the ratio t of one tensor."""
    experts = len(vectors)
    if experts == 1 or vectors.is_zero(name) or not vectors.numel(name):
        return 1.0
    gram = sum_over_tensor(vectors, name, lambda _, tile: _products(tile), whole=False)
    norms = gram.diagonal().sqrt()
    cosines = gram / torch.outer(norms, norms).clamp(min=torch.finfo(torch.float64).tiny)
    pairs = experts * (experts - 1)
    mean = float(cosines.sum() - cosines.diagonal().sum()) / pairs
    return max(experts * mean / max(1 + (experts - 1) * mean, 1e-12), -1.0)


def _products(tile: Tensor) -> Tensor:
    """Return the inner products of task vectors [K, n] with each other, [K, K] in float64."""
    wide = tile.double()
    return wide @ wide.mT
