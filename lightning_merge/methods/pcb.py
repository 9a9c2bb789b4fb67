"""PCB-Merging: each parameter is weighted by how it competes with the other experts'."""

from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_merge.core.checks import require_choice, require_finite, require_in
from lightning_merge.core.facts import Facts
from lightning_merge.core.vectors.selection import kth_smallest, kth_smallest_magnitude, largest
from lightning_merge.core.vectors.task_vectors import TaskVectors, sum_tasks
from lightning_merge.core.vectors.tiles import Span
from lightning_merge.methods.base import Resources
from lightning_merge.methods.linear import Directing, Direction, Linear

Variant = Literal["vision", "language"]


@dataclass(frozen=True)
class PCB(Linear):
    """Parameter competition balancing. Needs nothing but weights.

    With c_k the magnitudes |tau_k| clipped at their quantiles and u_k the same scaled to [0, 1],
    both over all parameters of an expert, a parameter's score is the product of

    * how much it matters to its own expert: exp(K u_k^2), and
    * how well the experts agree: sum_j tanh(s_k u_k s_j u_j), s_k = sign tau_k, for "vision";
      tanh(tau_k sum_j tau_j) for "language".

    The weights beta_k are each expert's `density` highest scores, shifted and scaled to [0, 1],
    and 0 elsewhere; if the highest scores are all equal and positive, they become 1. The update
    is scale * sum_k beta_k s_k c_k / sum_k beta_k.

    Reference: Du et al. 2024, "Parameter Competition Balancing for Model Merging", following its
    published code.

    Args:
        density: Fraction r of each expert's parameters that keeps a weight, in [0, 1].
        scale: Factor lambda of the update.
        variant: Measure of agreement, "vision" or "language", see above.
        clip: Fraction of the magnitudes clipped at either end, in [0, 0.5].
        rescale: Scale the kept scores to [0, 1], as the published code does.

    Raises:
        InputError: A value is out of bounds.

    Examples:
        >>> experts = {"a": {"w": torch.tensor([3.0, 1.0])}, "b": {"w": torch.tensor([1.0, -2.0])}}
        >>> method = PCB(density=0.5, scale=1.0, clip=0.0)  # one entry of two from each expert
        >>> method({"w": torch.zeros(2)}, experts)["w"]
        tensor([ 3., -2.])
    """

    density: float = 0.05
    scale: float = 1.2
    variant: Variant = "vision"
    clip: float = 0.01
    rescale: bool = True
    facts: ClassVar[Facts] = Facts(
        reference="Du et al. 2024",
        arxiv="2410.02396",
        readings=5,
        work="K(K + 1) / 2 tanh an entry",
    )

    def __post_init__(self) -> None:
        require_in("[0, 1]", density=self.density)
        require_in("[0, 0.5]", clip=self.clip)
        require_finite(scale=self.scale)
        require_choice(("vision", "language"), variant=self.variant)

    def direct(self, vectors: TaskVectors, resources: Resources) -> Directing:
        """Find the quantiles of the magnitudes, then those of the scores."""
        names, total = vectors.names, sum(map(vectors.numel, vectors.names))
        if total == 0 or self.density == 0:
            return lambda span, tile: Direction(torch.zeros_like(tile[0]))
        ranks = (int(total * self.clip), max(int(total * (1 - self.clip) - 1), 0))
        low, high = (kth_smallest_magnitude(vectors, names, rank + 1).value for rank in ranks)
        contest = _Contest(self.variant, low[:, None], torch.maximum(low, high)[:, None])
        scores = vectors.map(contest.scores)
        floor = kth_smallest(scores, names, min(int(total * (1 - self.density)), total - 1) + 1)
        top = largest(scores, names) if self.rescale else None

        def direct(span: Span, tile: Tensor) -> Direction:
            weights = _weights(contest.scores(span, tile), floor, top)
            weighed = contest.clipped(tile).mul_(tile.sign()).mul_(weights)
            shares = sum_tasks(weights)
            return Direction(sum_tasks(weighed).div_(shares.masked_fill_(shares == 0, 1)))

        return direct


class _Contest(NamedTuple):
    """The map from task vectors to scores [K, n], given bounds of magnitudes [K, 1]."""

    variant: Variant
    low: Tensor
    high: Tensor

    def clipped(self, tile: Tensor) -> Tensor:
        """Return the magnitudes clipped to the bounds, [K, n]."""
        return tile.abs().clamp_(self.low.to(tile), self.high.to(tile))

    def scores(self, span: Span, tile: Tensor) -> Tensor:
        """Return the scores of `PCB` times exp(-K), which prevents overflow and cancels later."""
        width = (self.high - self.low).to(tile)
        unit = self.clipped(tile).sub_(self.low.to(tile)).div_(width.masked_fill(width == 0, 1))
        agreement = (
            _agreement(unit * tile.sign())
            if self.variant == "vision"
            else torch.tanh(tile * sum_tasks(tile))
        )
        return unit.square_().sub_(1).mul_(len(tile)).exp_().mul_(agreement)


def _agreement(signed: Tensor) -> Tensor:
    """Return sum_j tanh(x_k x_j) of a stack [K, n]; each pair is computed once."""
    agreement = torch.zeros_like(signed)
    for one, other in combinations_with_replacement(range(len(signed)), 2):
        shared = torch.tanh(signed[one] * signed[other])
        agreement[one] += shared
        if other != one:
            agreement[other] += shared
    return agreement


def _weights(scores: Tensor, floor: Tensor, top: Tensor | None) -> Tensor:
    """Return weights from scores [K, n] and the lowest kept and the highest score of each."""
    lowest = floor[:, None].to(scores)
    if top is None:
        return scores.relu() * (scores >= lowest)
    width = top[:, None].to(scores) - lowest
    equal = (width == 0) & (scores >= lowest) & (scores > 0)
    moved = scores.sub_(lowest).relu_().div_(width.masked_fill_(width == 0, 1))
    return moved.masked_fill_(equal, 1)
