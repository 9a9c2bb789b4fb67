"""Base class of methods that decompose each weight matrix separately."""

from abc import abstractmethod
from typing import get_args

from torch import Tensor

from lightning_merge.core.checks import require_choice, require_finite
from lightning_merge.core.vectors.decompose import Convolutions, as_matrices
from lightning_merge.core.vectors.task_vectors import TaskVectors, sum_tasks
from lightning_merge.core.vectors.tiles import Span
from lightning_merge.methods.base import Resources
from lightning_merge.methods.linear import Directing, Direction, Linear


class ByMatrix(Linear):
    """A method that merges matrices by a decomposition, averages other tensors and scales both.

    Subclasses are dataclasses with these fields and facts with `whole=True`; their `merged`
    defines the update of a matrix.

    Examples:
        >>> import torch
        >>> class Summed(ByMatrix):
        ...     scale, convolutions = 1.0, "matrix"
        ...
        ...     def merged(self, matrices):
        ...         return matrices.sum(0)
        >>> expert = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
        >>> base = {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}
        >>> Summed()(base, {"a": expert, "b": expert})
        {'weight': tensor([[2., 2.]]), 'bias': tensor([1.])}
    """

    scale: float
    convolutions: Convolutions

    def __post_init__(self) -> None:
        require_finite(scale=self.scale)
        require_choice(get_args(Convolutions), convolutions=self.convolutions)

    @abstractmethod
    def merged(self, matrices: Tensor) -> Tensor:
        """Return the update [m, n] at scale 1, in float64, of task vectors [K, m, n]."""

    def direct(self, vectors: TaskVectors, resources: Resources) -> Directing:
        """Return the function that decomposes a matrix and merges it."""

        def direct(span: Span, tile: Tensor) -> Direction:
            matrices = as_matrices(tile, vectors.base.shape(span.name), self.convolutions)
            if matrices is None:
                return Direction(sum_tasks(tile), len(tile))
            return Direction(self.merged(matrices))

        return direct
