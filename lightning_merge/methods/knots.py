"""KnOTS: TIES in a basis that the experts share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from lightning_merge.core.checks import require_choice, require_finite, require_in
from lightning_merge.core.facts import Facts
from lightning_merge.core.vectors.decompose import as_matrices, column_basis
from lightning_merge.core.vectors.elect import Combine, disjoint_merge, elect_signs
from lightning_merge.core.vectors.task_vectors import TaskVectors, sum_tasks
from lightning_merge.core.vectors.tiles import Span
from lightning_merge.methods.base import MergeMethod, Resources, Update

_HIGH, _LOW = 16, 15  # bits of a magnitude in float32 that each pass looks at


@dataclass(frozen=True)
class KnOTS(MergeMethod):
    """TIES on the experts' coordinates in a shared basis. Needs nothing but weights.

    The updates of one tensor beside each other, [tau_1 ... tau_K] of shape [out, K rest], are
    U S V^T; C_k = U^T tau_k = S V_k^T are expert k's coordinates. Each expert keeps the largest
    magnitudes of all its coordinates together, signs are elected and C merged as in TIES (ties
    go to +); the update is scale * U C. Tensors that are no matrices are averaged, times scale.

    Made for experts tuned by LoRA. Cost: 1 eigenvalue problem of size min(out, K rest) per
    tensor, the products with U, and four readings of everything. The plan holds U of every
    tensor, up to out * out numbers each: for ViT-B/32 somewhat more than the model.

    Reference: Stoica et al. 2025, "Model merging with SVD to tie the KnOTS", section 4. The
    published code appends biases to their weights as columns; here they are averaged. Its
    singular values below 1e-5 count as zero, here those below 1e-5 of the largest.

    Args:
        density: Fraction of each expert's coordinates that is kept, in [0, 1].
        scale: Factor of the update.
        combine: Disjoint "mean" or "sum".

    Raises:
        InputError: A value is out of its bounds.
    """

    density: float = 0.2
    scale: float = 0.6
    combine: Combine = "mean"
    facts: ClassVar[Facts] = Facts(
        reference="Stoica et al. 2025",
        arxiv="2410.19735",
        readings=4,
        whole=True,
        work="1 eigenproblem a tensor",
        memory="U of every tensor",
    )

    def __post_init__(self) -> None:
        require_in("[0, 1]", density=self.density)
        require_finite(scale=self.scale)
        require_choice(get_args(Combine), combine=self.combine)

    def plan(self, vectors: TaskVectors, resources: Resources) -> Update:
        """Find the shared bases, and the magnitude that coordinates of each expert must reach."""
        found = vectors.each(vectors.names, lambda name: _basis(vectors, name))
        bases = {n: b for n, b in zip(vectors.names, found, strict=True) if b is not None}
        thresholds = _thresholds(vectors, bases, self.density)

        def update(span: Span, tile: Tensor) -> Tensor:
            if span.name not in bases:
                return sum_tasks(tile).mul_(self.scale / len(tile))
            basis = bases[span.name]
            values = _coordinates(basis, tile)
            values[values.abs().float() < thresholds[:, None]] = 0.0
            merged = disjoint_merge(values, elect_signs(values), self.combine).mul_(self.scale)
            return (basis @ merged.view(basis.shape[1], -1)).flatten()

        return update


def _basis(vectors: TaskVectors, name: str) -> Tensor | None:
    """U of one tensor, [out, r], in the type of its task vectors; None if it is none or zero."""
    if vectors.is_zero(name):
        return None
    stack = vectors[name]
    matrices = as_matrices(stack.flatten(1), stack.shape[1:]) if stack.dim() > 1 else None
    if matrices is None:
        return None
    joined = matrices.transpose(0, 1).flatten(1)
    basis = column_basis(joined).to(stack.dtype).contiguous()
    return basis if basis.numel() else None


def _coordinates(basis: Tensor, tile: Tensor) -> Tensor:
    """U^T tau_k of all experts, [K, r * rest], from U [out, r] and a whole tensor's tile."""
    return (basis.mT @ tile.view(len(tile), len(basis), -1)).flatten(1)


def _thresholds(vectors: TaskVectors, bases: Mapping[str, Tensor], density: float) -> Tensor:
    """Smallest magnitude that is kept, over all coordinates of each expert, [K] in float32.

    As in TIES it is the (d - floor(d * density))-th smallest of d. Read as integers, the bits of
    magnitudes are ordered as these are: one pass counts their upper half, another the lower half
    of those that share the upper half of the one looked for.
    """
    total = sum(vectors.numel(n) // len(b) * b.shape[1] for n, b in bases.items())
    rank = total - int(total * density)
    if density == 0 or rank == 0:
        bound = torch.inf if density == 0 else 0.0
        return torch.full((len(vectors),), bound, device=vectors.device)
    ranks = torch.full((len(vectors), 1), rank)
    upper = _counts(vectors, bases, lambda bits, _: bits >> _LOW, 2**_HIGH)
    high = torch.searchsorted(upper, ranks)
    below = torch.where(high > 0, upper.gather(1, (high - 1).clamp(min=0)), 0)

    def lower_half(bits: Tensor, k: int) -> Tensor:
        return bits[bits >> _LOW == high[k].item()] & (2**_LOW - 1)

    low = torch.searchsorted(_counts(vectors, bases, lower_half, 2**_LOW), ranks - below)
    return (high << _LOW | low).int().view(torch.float32).flatten().to(vectors.device)


def _counts(
    vectors: TaskVectors,
    bases: Mapping[str, Tensor],
    part: Callable[[Tensor, int], Tensor],
    size: int,
) -> Tensor:
    """How many coordinates of each expert have a part of their bits up to each value, [K, size].

    The part is a function of magnitudes as integers [n] and the expert's number.
    """

    def count(name: str) -> Tensor:
        magnitudes = _coordinates(bases[name], vectors[name].flatten(1)).float().abs()
        rows = enumerate(magnitudes.view(torch.int32))
        return torch.stack([torch.bincount(part(row, k), minlength=size).cpu() for k, row in rows])

    return torch.stack(vectors.each(bases, count)).sum(0).cumsum(1)
