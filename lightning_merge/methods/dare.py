"""DARE: drop entries at random and rescale the others."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_merge.core.checks import require_in
from lightning_merge.core.facts import Facts
from lightning_merge.core.vectors.drop import drop_at_random
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.tiles import Span
from lightning_merge.methods.base import Transform


@dataclass(frozen=True)
class Dare(Transform):
    """Drop each entry with probability p, divide the others by 1 - p. Needs nothing but weights.

    The expectation of every task vector is unchanged. The random numbers depend only on the seed,
    the task and the tensor's name, without the prefix that all changed tensors share. Tied weights
    lose the same entries.

    Reference: Yu et al. 2024, "Language models are super Mario".

    Args:
        drop: Probability p of dropping an entry, in [0, 1).
        seed: Seed of the random numbers.

    Raises:
        InputError: `drop` is outside [0, 1).

    Examples:
        >>> import torch
        >>> from lightning_merge.methods import TaskArithmetic
        >>> experts = {"cars": {"w": torch.ones(8)}}
        >>> TaskArithmetic(1.0, transforms=[Dare(drop=0.5)])({"w": torch.zeros(8)}, experts)["w"]
        tensor([2., 0., 0., 2., 2., 2., 0., 2.])
    """

    drop: float = 0.9
    seed: int = 0
    facts: ClassVar[Facts] = Facts(
        reference="Yu et al. 2024",
        arxiv="2311.03099",
        readings=0,
        on_top=True,
        work="random numbers",
    )

    def __post_init__(self) -> None:
        require_in("[0, 1)", drop=self.drop)

    def __call__(self, vectors: TaskVectors) -> TaskVectors:
        """Return the task vectors with entries dropped."""

        def drop(span: Span, tile: Tensor) -> Tensor:
            kept = drop_at_random(span, tile, vectors, self.drop, self.seed)
            return kept.div_(1 - self.drop)

        return vectors.map(drop)
