"""TIES: trim, elect signs, merge the entries that agree."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

from torch import Tensor

from lightning_merge.core.checks import require_choice, require_finite, require_in
from lightning_merge.core.facts import Facts
from lightning_merge.core.vectors.elect import Combine, disjoint_merge, elect_signs, majority_sign
from lightning_merge.core.vectors.task_vectors import TaskVectors, TileMap, sum_tasks
from lightning_merge.core.vectors.tiles import Span
from lightning_merge.core.vectors.trim import global_trim, tensor_trim
from lightning_merge.methods.base import Resources, Transform
from lightning_merge.methods.linear import Directing, Direction, Linear

TrimScope = Literal["global", "per_tensor"]


@dataclass(frozen=True)
class Ties(Linear):
    """Trim, elect sign, disjoint merge. Needs nothing but weights.

    Every expert keeps its largest magnitudes, those that reach the (d - floor(d * density))-th
    smallest of d. An entry's sign is that of the sum over experts (if the sum is exactly zero, the
    majority sign of the whole vector). The update is scale * mean (or sum) over the experts whose
    sign agrees, zeros excluded.

    Reference: Yadav et al. 2023, "TIES-Merging".

    Args:
        density: Fraction of each expert's entries to keep, in [0, 1].
        scale: Factor of the update; usually 1 with the mean and 0.3 with the sum.
        combine: Disjoint "mean" or "sum".
        trim: "global" ranks all parameters of an expert together, "per_tensor" each tensor.

    Raises:
        InputError: A value is out of bounds.

    Examples:
        >>> import torch
        >>> experts = {"a": {"w": torch.tensor([4.0, 3.0, 0.1, 0.2])}}
        >>> experts["b"] = {"w": torch.tensor([2.0, -5.0, 0.3, 0.1])}
        >>> Ties(density=0.4)({"w": torch.zeros(4)}, experts)["w"]
        tensor([ 3., -5.,  0.,  0.])
    """

    density: float = 0.2
    scale: float = 1.0
    combine: Combine = "mean"
    trim: TrimScope = "global"
    facts: ClassVar[Facts] = Facts(reference="Yadav et al. 2023", arxiv="2306.01708", readings=2)

    def __post_init__(self) -> None:
        require_in("[0, 1]", density=self.density)
        require_finite(scale=self.scale)
        require_choice(("mean", "sum"), combine=self.combine)
        require_choice(("global", "per_tensor"), trim=self.trim)

    def direct(self, vectors: TaskVectors, resources: Resources) -> Directing:
        """Find the global thresholds; the majority sign is computed only if a sum is zero."""
        trim = trimming(vectors, self.density, self.trim)
        elect = _electing(vectors, trim)

        def direct(span: Span, tile: Tensor) -> Direction:
            trimmed = trim(span, tile)
            return Direction(disjoint_merge(trimmed, elect(trimmed), self.combine))

        return direct


@dataclass(frozen=True)
class TrimAndElect(Transform):
    """The first two steps of TIES as a transform: trim, then keep entries of the elected sign.

    The sum of the result is the disjoint sum of TIES. Before AdaMerging it gives AdaMerging++
    (Yang et al. 2024, section 3.2). Needs nothing but weights.

    Args:
        density: Fraction of each expert's entries that the trim keeps, in [0, 1].
        trim: "global" ranks all parameters of an expert together, "per_tensor" each tensor.

    Raises:
        InputError: A value is out of bounds.

    Examples:
        >>> import torch
        >>> experts = {"a": {"w": torch.tensor([4.0, 3.0, 0.1, 0.2])}}
        >>> experts["b"] = {"w": torch.tensor([2.0, -5.0, 0.3, 0.1])}
        >>> TrimAndElect(density=0.4)(TaskVectors({"w": torch.zeros(4)}, experts))["w"].sum(0)
        tensor([ 6., -5.,  0.,  0.])
    """

    density: float = 0.2
    trim: TrimScope = "global"
    facts: ClassVar[Facts] = Facts(
        reference="Yadav et al. 2023", arxiv="2306.01708", readings=1, on_top=True
    )

    def __post_init__(self) -> None:
        require_in("[0, 1]", density=self.density)
        require_choice(("global", "per_tensor"), trim=self.trim)

    def __call__(self, vectors: TaskVectors) -> TaskVectors:
        """Return the trimmed task vectors without entries of the opposite sign."""
        trim = trimming(vectors, self.density, self.trim)
        elect = _electing(vectors, trim)

        def keep(span: Span, tile: Tensor) -> Tensor:
            trimmed = trim(span, tile)
            signs = elect(trimmed)
            return trimmed.mul_(signs).relu_().mul_(signs)

        return vectors.map(keep)


def _electing(vectors: TaskVectors, trim: TileMap) -> Callable[[Tensor], Tensor]:
    """Return the map from a trimmed tile [K, n] to the elected signs [n].

    The majority sign of all trimmed vectors is computed only if entries cancel exactly.
    """
    majority = cache(lambda: majority_sign(vectors.map(trim)))

    def elect(trimmed: Tensor) -> Tensor:
        signs = elect_signs(trimmed, zero_sign=0.0)
        cancelled = (signs == 0) & (sum_tasks(trimmed.abs()) > 0)
        if cancelled.any():
            signs[cancelled] = majority()
        return signs

    return elect


def trimming(vectors: TaskVectors, density: float, scope: TrimScope) -> TileMap:
    """Return the trim of a scope; a global one reads all task vectors for its thresholds.

    Examples:
        >>> import torch
        >>> cars = {"w": torch.tensor([1.0, -3.0, 2.0])}
        >>> vectors = TaskVectors({"w": torch.zeros(3)}, {"cars": cars})
        >>> vectors.map(trimming(vectors, 0.4, "global"))["w"]
        tensor([[ 0., -3.,  2.]])
    """
    return (global_trim if scope == "global" else tensor_trim)(vectors, density)
