"""TIES: trim, elect sign, merge what agrees."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

from torch import Tensor

from lightning_merge.core.elect import Combine, disjoint_merge, elect_signs, majority_sign
from lightning_merge.core.task_vectors import Span, TaskVectors, TileMap, sum_tasks
from lightning_merge.core.trim import global_trim, tensor_trim
from lightning_merge.methods.base import MergeMethod, Resources, Transform, Update
from lightning_merge.methods.checks import require_between, require_choice, require_finite

TrimScope = Literal["global", "per_tensor"]


@dataclass(frozen=True)
class Ties(MergeMethod):
    """Trim, elect sign, disjoint merge. Needs nothing but weights.

    Every expert keeps its largest magnitudes; an entry's sign is that of its summed mass
    (where the mass is exactly zero, the majority sign of the whole vector); the update is
    scale * mean (or sum) over the experts whose sign agrees, zeros excluded.

    Reference: Yadav et al. 2023, "TIES-Merging".

    Args:
        density: Fraction of each expert's entries that is kept, in [0, 1].
        scale: Factor of the update; 1 with the mean, 0.3 with the sum are usual.
        combine: Disjoint "mean" or "sum".
        trim: "global" ranks all parameters of an expert together, "per_tensor" each tensor.
        transforms: Applied to the task vectors first, in order.

    Raises:
        InputError: A value is out of its bounds.
    """

    density: float = 0.2
    scale: float = 1.0
    combine: Combine = "mean"
    trim: TrimScope = "global"
    transforms: Sequence[Transform] = ()
    reference: ClassVar[str] = "Yadav et al. 2023, arXiv:2306.01708"

    def __post_init__(self) -> None:
        require_between(0, 1, density=self.density)
        require_finite(scale=self.scale)
        require_choice(("mean", "sum"), combine=self.combine)
        require_choice(("global", "per_tensor"), trim=self.trim)

    def plan(self, vectors: TaskVectors, resources: Resources) -> Update:
        """Find the global thresholds; the majority sign only when some mass is zero."""
        trim = trimming(vectors, self.density, self.trim)
        majority = cache(lambda: majority_sign(vectors.map(trim)))

        def update(span: Span, tile: Tensor) -> Tensor:
            trimmed = trim(span, tile)
            signs = elect_signs(trimmed, zero_sign=0.0)
            cancelled = (signs == 0) & (sum_tasks(trimmed.abs()) > 0)
            if cancelled.any():
                signs[cancelled] = majority()
            return disjoint_merge(trimmed, signs, self.combine).mul_(self.scale)

        return update


def trimming(vectors: TaskVectors, density: float, scope: TrimScope) -> TileMap:
    """The trim of one scope: a global one reads all task vectors to find its thresholds."""
    return (global_trim if scope == "global" else tensor_trim)(vectors, density)
