"""Baselines and controls of LwPTV: pruning by magnitude or at random, by parameter or by layer."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from lightning_merge.core.checks import require_in
from lightning_merge.core.facts import Facts
from lightning_merge.core.seeding import generator_for
from lightning_merge.core.vectors.drop import drop_at_random
from lightning_merge.core.vectors.selection import kth_smallest_magnitude
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.trim import Cut
from lightning_merge.methods.base import Transform
from lightning_merge.methods.lwptv import LwPTV


@dataclass(frozen=True)
class MagnitudePruning(Transform):
    """Magnitude-based weight pruning (MWP) of every task vector. Needs nothing but weights.

    Of all d parameters of an expert, the floor(d * prune_ratio) smallest |tau| become zero, except
    those equal to the smallest one kept.

    Reference: Sanh et al. 2020, "Movement pruning"; a baseline in Zhang et al. 2025, table 3.

    Args:
        prune_ratio: Fraction of the entries to prune, in [0, 1].

    Raises:
        InputError: `prune_ratio` is outside [0, 1].

    Examples:
        >>> import torch
        >>> cars = {"w": torch.tensor([1.0, -4.0, 2.0, 3.0])}
        >>> vectors = TaskVectors({"w": torch.zeros(4)}, {"cars": cars})
        >>> MagnitudePruning(prune_ratio=0.5)(vectors)["w"]
        tensor([[ 0., -4.,  0.,  3.]])
    """

    prune_ratio: float = 0.7
    facts: ClassVar[Facts] = Facts(
        reference="Sanh et al. 2020", arxiv="2005.07683", readings=1, on_top=True
    )

    def __post_init__(self) -> None:
        require_in("[0, 1]", prune_ratio=self.prune_ratio)

    def __call__(self, vectors: TaskVectors) -> TaskVectors:
        """Return the task vectors without their smallest entries."""
        total = sum(map(vectors.numel, vectors.names))
        pruned = int(total * self.prune_ratio)
        if pruned == 0:
            return vectors
        if pruned == total:
            return vectors.zeroed(vectors.names)
        cut = Cut(kth_smallest_magnitude(vectors, vectors.names, pruned + 1).value.tolist())
        return vectors.map(lambda span, tile: cut(tile, span.start))


@dataclass(frozen=True)
class RandomPruning(Transform):
    """Drop each entry with some probability and leave the others as they are.

    This is DARE without rescaling; with the same seed both drop the same entries. Needs nothing
    but weights.

    Reference: Zhang et al. 2025, "Merging Smarter, Generalizing Better", table 3, "random mask".

    Args:
        prune_ratio: Probability of dropping an entry, in [0, 1].
        seed: Seed of the random numbers, which also depend on the task and the tensor's name.

    Raises:
        InputError: `prune_ratio` is outside [0, 1].

    Examples:
        >>> import torch
        >>> vectors = TaskVectors({"w": torch.zeros(8)}, {"cars": {"w": torch.ones(8)}})
        >>> RandomPruning(prune_ratio=0.5)(vectors)["w"]
        tensor([[1., 0., 0., 1., 1., 1., 0., 1.]])
    """

    prune_ratio: float = 0.7
    seed: int = 0
    facts: ClassVar[Facts] = Facts(
        reference="Zhang et al. 2025, Merging Smarter, Generalizing Better",
        readings=0,
        on_top=True,
        work="random numbers",
    )

    def __post_init__(self) -> None:
        require_in("[0, 1]", prune_ratio=self.prune_ratio)

    def __call__(self, vectors: TaskVectors) -> TaskVectors:
        """Return the task vectors with entries dropped."""
        return vectors.map(
            lambda span, tile: drop_at_random(span, tile, vectors, self.prune_ratio, self.seed)
        )


@dataclass(frozen=True)
class RandomLayers(Transform):
    """Prune as many layers as LwPTV does, but any: the control of how LwPTV chooses.

    All tasks keep the same layers. Needs nothing but weights.

    Reference: our own control; layers and shares are those of `LwPTV`.

    Args:
        prune_ratio: Fraction of layers that each task prunes in `LwPTV`, which says how many are
            left.
        seed: Seed of the random numbers, which also depend on the tensor's name.

    Raises:
        InputError: `prune_ratio` is negative.

    Examples:
        >>> import torch
        >>> base = {name: torch.zeros(1) for name in "vwxyz"}
        >>> cars, pets = (
        ...     {name: torch.tensor([float(sign * i)]) for i, name in enumerate(base)}
        ...     for sign in (1, -1)
        ... )
        >>> vectors = TaskVectors(base, {"cars": cars, "pets": pets})
        >>> kept = RandomLayers(prune_ratio=0.6)(vectors)
        >>> len(kept.names), len(LwPTV(0.6)(vectors).names)
        (5, 5)
        >>> sum(kept[name].any().item() for name in kept.names)
        1
    """

    prune_ratio: float = 0.7
    seed: int = 0
    facts: ClassVar[Facts] = Facts(
        reference="control of LwPTV", readings=1, on_top=True, work="random numbers"
    )

    def __post_init__(self) -> None:
        require_in("[0, inf)", prune_ratio=self.prune_ratio)

    def __call__(self, vectors: TaskVectors) -> TaskVectors:
        """Return the task vectors with layers zeroed at random."""
        lwptv = LwPTV(self.prune_ratio)
        if lwptv.keeps_all(vectors):
            return vectors
        pruned = int((~lwptv.masks(vectors)[0]).sum())
        drawn = {name: self._number(vectors.stored.key(name)) for name in vectors.names}
        return vectors.zeroed(sorted(vectors.names, key=drawn.__getitem__)[:pruned])

    def _number(self, key: str) -> float:
        """Return the random number of a layer, which does not depend on the other layers."""
        return torch.rand((), generator=generator_for(self.seed, "layer", key)).item()


@dataclass(frozen=True)
class AbsolutePruning(Transform):
    """Prune the layers of every task vector whose mean |tau| is small. Needs nothing but weights.

    This is LwPTV with the magnitude as score and a separate mask for each task.

    Reference: Zhang et al. 2025, "Merging Smarter, Generalizing Better", table 3, "absolute value".

    Args:
        prune_ratio: Fraction of the layers to prune, in [0, 1].

    Raises:
        InputError: `prune_ratio` is outside [0, 1].

    Examples:
        >>> import torch
        >>> base = {"x": torch.zeros(1), "y": torch.zeros(1), "z": torch.zeros(1)}
        >>> cars = {"x": torch.tensor([1.0]), "y": torch.tensor([-2.0]), "z": torch.tensor([3.0])}
        >>> vectors = AbsolutePruning(prune_ratio=0.4)(TaskVectors(base, {"cars": cars}))
        >>> [vectors[name].item() for name in "xyz"]
        [0.0, 0.0, 3.0]
    """

    prune_ratio: float = 0.7
    facts: ClassVar[Facts] = Facts(
        reference="Zhang et al. 2025, Merging Smarter, Generalizing Better", readings=1, on_top=True
    )

    def __post_init__(self) -> None:
        require_in("[0, 1]", prune_ratio=self.prune_ratio)

    def __call__(self, vectors: TaskVectors) -> TaskVectors:
        """Return the task vectors with their small layers zeroed."""
        return LwPTV(self.prune_ratio, score="magnitude", shared=False)(vectors)
