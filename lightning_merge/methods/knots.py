"""KnOTS: TIES in a basis that the experts share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_merge.core.checks import require_choice, require_finite, require_in
from lightning_merge.core.facts import Facts
from lightning_merge.core.vectors.decompose import as_matrices, column_basis
from lightning_merge.core.vectors.elect import Combine, disjoint_merge, elect_signs
from lightning_merge.core.vectors.selection import (
    BLOCK,
    Sample,
    kth_smallest_magnitude,
    sampled_blocks,
)
from lightning_merge.core.vectors.task_vectors import TaskVectors, sum_tasks
from lightning_merge.core.vectors.tiles import Span
from lightning_merge.methods.base import Resources
from lightning_merge.methods.linear import Directing, Direction, Linear


@dataclass(frozen=True)
class KnOTS(Linear):
    """TIES on the experts' coordinates in a shared basis. Needs nothing but weights.

    The concatenated updates of one tensor, [tau_1 ... tau_K] of shape [out, K rest], are U S V^T;
    C_k = U^T tau_k = S V_k^T are expert k's coordinates. Each expert keeps the largest magnitudes
    of all its coordinates together; signs are elected and the C_k merged as in TIES (ties go to
    +). The update is scale * U C. Tensors other than matrices are averaged, times scale.

    Designed for experts tuned by LoRA. Cost: 1 eigenvalue problem of size min(out, K rest) per
    tensor, the products with U, and three readings, a fourth if the
    sampled range of magnitudes misses the threshold. The plan holds U of every tensor, up to
    out * out numbers each, for ViT-B/32 slightly more than the model.

    Reference: Stoica et al. 2025, "Model merging with SVD to tie the KnOTS", section 4. The
    published code appends biases to their weights as columns; here they are averaged. It takes
    singular values below 1e-5 as zero; here the bound is 1e-5 of the largest.

    Args:
        density: Fraction of each expert's coordinates that is kept, in [0, 1].
        scale: Factor of the update.
        combine: Disjoint "mean" or "sum".

    Raises:
        InputError: A value is out of bounds.

    Examples:
        >>> experts = {"a": {"w": torch.tensor([[2.0, 0], [0, 0]])}}
        >>> experts["b"] = {"w": torch.tensor([[4.0, 0], [0, 1]])}
        >>> KnOTS(density=1.0, scale=1.0)({"w": torch.zeros(2, 2)}, experts)["w"].diagonal()
        tensor([3., 1.])
    """

    density: float = 0.2
    scale: float = 0.6
    combine: Combine = "mean"
    facts: ClassVar[Facts] = Facts(
        reference="Stoica et al. 2025",
        arxiv="2410.19735",
        readings=3,
        whole=True,
        work="1 eigenproblem a tensor",
        memory="U of every tensor",
    )

    def __post_init__(self) -> None:
        require_in("[0, 1]", density=self.density)
        require_finite(scale=self.scale)
        require_choice(get_args(Combine), combine=self.combine)

    def direct(self, vectors: TaskVectors, resources: Resources) -> Directing:
        """Find the shared bases and the threshold of each expert's coordinates."""
        bases, sample = _shared_bases(vectors)
        thresholds = _thresholds(vectors, bases, self.density, sample)

        def direct(span: Span, tile: Tensor) -> Direction:
            if span.name not in bases:
                return Direction(sum_tasks(tile), len(tile))
            basis = bases[span.name]
            values = _coordinates(basis, tile)
            values[values.abs().float() < thresholds[:, None]] = 0.0
            merged = disjoint_merge(values, elect_signs(values), self.combine)
            return Direction(merged, basis=basis)

        return direct


class _Shared(NamedTuple):
    """The result of the first reading of a tensor.

    Attributes:
        basis: U, [out, r], in the type of its task vectors.
        blocks: Some of the experts' coordinates in it, [K, BLOCK] each.
    """

    basis: Tensor
    blocks: list[Tensor]


def _shared_bases(vectors: TaskVectors) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return U of every tensor that has one, and a sample of all coordinates."""
    starts = sampled_blocks({name: vectors.numel(name) for name in vectors.names})
    each = vectors.each(vectors.names, lambda name: _shared(vectors, name, starts[name]))
    shared = {n: one for n, one in zip(vectors.names, each, strict=True) if one is not None}
    blocks = [block for one in shared.values() for block in one.blocks]
    return {name: one.basis for name, one in shared.items()}, blocks


def _shared(vectors: TaskVectors, name: str, starts: Iterable[int]) -> _Shared | None:
    """Return the basis of a tensor and sampled blocks of coordinates; None if it has no basis."""
    if vectors.is_zero(name):
        return None
    stack = vectors[name]
    matrices = as_matrices(stack.flatten(1), stack.shape[1:]) if stack.dim() > 1 else None
    if matrices is None:
        return None
    joined = matrices.transpose(0, 1).flatten(1)
    basis = column_basis(joined).to(stack.dtype).contiguous()
    if not basis.numel():
        return None
    values = _coordinates(basis, stack.flatten(1))
    ends = (start + BLOCK for start in starts)
    return _Shared(basis, [values[:, e - BLOCK : e].clone() for e in ends if e <= values.shape[1]])


def _coordinates(basis: Tensor, tile: Tensor) -> Tensor:
    """Return U^T tau_k of all experts, [K, r * rest], from U [out, r] and a whole tensor."""
    return (basis.mT @ tile.view(len(tile), len(basis), -1)).flatten(1)


def _thresholds(
    vectors: TaskVectors,
    bases: Mapping[str, Tensor],
    density: float,
    blocks: Sequence[Tensor] = (),
) -> Tensor:
    """Return the smallest magnitude that each expert keeps, [K] in float32.

    As in TIES it is the (d - floor(d * density))-th smallest of d.
    """
    total = sum(vectors.numel(n) // len(b) * b.shape[1] for n, b in bases.items())
    rank = total - int(total * density)
    if density == 0 or rank == 0:
        bound = torch.inf if density == 0 else 0.0
        return torch.full((len(vectors),), bound, device=vectors.device)
    coordinates = vectors.whole().map(lambda span, tile: _coordinates(bases[span.name], tile))
    order = kth_smallest_magnitude(coordinates, [*bases], rank, Sample(total, blocks))
    return order.value.float()
