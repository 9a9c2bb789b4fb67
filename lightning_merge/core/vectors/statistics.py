"""Statistics of weights: what StatsMerging's learner sees of every task and layer."""

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_merge.core.progress import tracked
from lightning_merge.core.vectors.task_vectors import TaskVectors, flatten_tasks

_BLOCK = 256  # rows: long enough for fast products, short enough to leave half out
Feature = Literal["mean", "variance", "norm", "singular_values"]
FEATURES: tuple[Feature, ...] = get_args(Feature)
Of = Literal["experts", "task_vectors"]


def feature_names(rank: int = 3, features: Sequence[Feature] = FEATURES) -> list[str]:
    """Names of the columns of `weight_statistics`, in order."""
    return [
        name
        for feature in features
        for name in (
            [f"sigma_{i + 1}" for i in range(rank)] if feature == "singular_values" else [feature]
        )
    ]


def weight_statistics(
    stacked: Tensor, rank: int = 3, features: Sequence[Feature] = FEATURES
) -> Tensor:
    """Mean, (population) variance, L2 norm and largest singular values of weights.

    Every tensor is a matrix [out, rest]; vectors and scalars are one row, so that their
    first singular value is their norm and the others are 0 (StatsMerging, section 3).

    Args:
        stacked: One layer of K experts, [K, *shape].
        rank: Number r of singular values, zeros where a matrix has fewer.
        features: Which statistics, in the order of the columns.

    Returns:
        [K, F] in float32, columns as `feature_names` says; F = 3 + r for all features.
    """
    flat = flatten_tasks(stacked if stacked.numel() else stacked.new_zeros(len(stacked))).double()
    compute = {
        "mean": lambda: flat.mean(1, keepdim=True),
        "variance": lambda: flat.var(1, correction=0, keepdim=True),
        "norm": lambda: flat.norm(dim=1, keepdim=True),
        "singular_values": lambda: top_singular_values(_matrices(stacked), rank),
    }
    return torch.cat([compute[feature]() for feature in features], dim=1).float()


def _matrices(stacked: Tensor) -> Tensor:
    """View a stack [K, *shape] as matrices [K, out, rest]."""
    return stacked.flatten(2) if stacked.dim() > 2 else stacked.reshape(len(stacked), 1, -1)


def top_singular_values(matrices: Tensor, rank: int) -> Tensor:
    """Return the largest singular values, descending, [..., rank], in float64.

    They are the roots of the eigenvalues of the Gram matrix on the smaller side, of which half
    is computed: several times cheaper than an SVD and, in float64, exact to float32 for the
    largest ones.

    Args:
        matrices: [..., m, n].
        rank: How many; zeros where min(m, n) is smaller.
    """
    matrices = matrices.double()
    if matrices.shape[-2] > matrices.shape[-1]:
        matrices = matrices.mT
    count = min(rank, matrices.shape[-2] if matrices.numel() else 0)
    values = matrices.new_zeros((*matrices.shape[:-2], rank))
    if count:
        eigenvalues = torch.linalg.eigvalsh(_lower_gram(matrices))
        values[..., :count] = eigenvalues[..., -count:].flip(-1).clamp(min=0).sqrt()
    return values


def _lower_gram(matrices: Tensor) -> Tensor:
    """Return the products of rows with each other, [..., m, m], on and below the diagonal."""
    rows = matrices.shape[-2]
    gram = matrices.new_zeros(*matrices.shape[:-1], rows)
    for start in range(0, rows, _BLOCK):
        end = start + _BLOCK
        gram[..., start:end, :end] = matrices[..., start:end, :] @ matrices[..., :end, :].mT
    return gram


def layer_statistics(
    stacks: Iterable[Tensor], rank: int = 3, features: Sequence[Feature] = FEATURES
) -> Tensor:
    """`weight_statistics` of every layer, [K, L, F], from stacks [K, *shape] read one by one."""
    return torch.stack([weight_statistics(stack, rank, features) for stack in stacks], dim=1)


def standard_statistics(
    vectors: TaskVectors, of: Of, rank: int = 3, features: Sequence[Feature] = FEATURES
) -> Tensor:
    """`layer_statistics` of experts' weights or task vectors, standardised, [K, L, F]."""
    read = vectors.weights if of == "experts" else vectors.__getitem__
    stacks = map(read, tracked(vectors.names, "statistics of weights"))
    return standardize(layer_statistics(stacks, rank, features))


def standardize(features: Tensor) -> Tensor:
    """Zero mean and unit variance of every feature over (task, layer), [K, L, F].

    A feature that is the same everywhere becomes 0.
    """
    wide = features.double()
    centred = wide - wide.mean((0, 1))
    deviation = centred.square().mean((0, 1)).sqrt()
    constant = deviation <= 1e-12 * wide.abs().amax((0, 1))
    return torch.where(constant, 0.0, centred / deviation.where(~constant, 1.0)).to(features.dtype)
