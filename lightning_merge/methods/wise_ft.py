"""WiSE-FT: interpolate between the base and each expert."""

from dataclasses import dataclass
from typing import ClassVar

from lightning_merge.core.checks import require_finite
from lightning_merge.core.facts import Facts
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.methods.base import Transform


@dataclass(frozen=True)
class WiSEFT(Transform):
    """Replace every expert by theta_0 + alpha tau_k. Needs nothing but weights.

    Before a linear method this only changes the scale; it matters for a single expert and before
    methods that depend on the size of task vectors.

    Reference: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models".

    Args:
        alpha: Factor of every task vector; 0 is the base, 1 the expert.

    Raises:
        InputError: `alpha` is not finite.

    Examples:
        >>> import torch
        >>> from lightning_merge.methods import Average
        >>> experts = {"cars": {"w": torch.tensor([3.0, 1.0])}}
        >>> Average(transforms=[WiSEFT(alpha=0.5)])({"w": torch.tensor([1.0, 1.0])}, experts)["w"]
        tensor([2., 1.])
    """

    alpha: float = 0.5
    facts: ClassVar[Facts] = Facts(
        reference="Wortsman et al. 2022", arxiv="2109.01903", readings=0, on_top=True
    )

    def __post_init__(self) -> None:
        require_finite(alpha=self.alpha)

    def __call__(self, vectors: TaskVectors) -> TaskVectors:
        """Return the task vectors times alpha."""
        return vectors.map(lambda span, tile: tile.mul_(self.alpha))
