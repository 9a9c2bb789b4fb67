"""Statistics of weights: the inputs of StatsMerging's learner, for every task and layer."""

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
    """Return the names of the columns of `weight_statistics`, in order.

    Examples:
        >>> feature_names(rank=2)
        ['mean', 'variance', 'norm', 'sigma_1', 'sigma_2']
    """
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
    """Return mean, (population) variance, L2 norm and largest singular values of weights.

    Every tensor is a matrix [out, rest]; vectors and scalars are one row, so that their
    first singular value is their norm and the others are 0 (StatsMerging, section 3).

    Args:
        stacked: One layer of K experts, [K, *shape].
        rank: Number r of singular values, padded with zeros.
        features: Statistics to compute, in the order of the columns.

    Returns:
        [K, F] in float32, columns as in `feature_names`; F = 3 + r for all features.

    Examples:
        >>> weight_statistics(torch.eye(2)[None], rank=3)
        tensor([[0.5000, 0.2500, 1.4142, 1.0000, 1.0000, 0.0000]])
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

    They are the square roots of the eigenvalues of the smaller Gram matrix, of which only half is
    computed: several times cheaper than an SVD and, in float64, exact to float32 for the largest
    ones.

    Args:
        matrices: [..., m, n].
        rank: Number of values, padded with zeros where min(m, n) is smaller.

    Examples:
        >>> top_singular_values(torch.diag(torch.tensor([3.0, 4.0])), rank=1)
        tensor([4.], dtype=torch.float64)
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
    """Return `weight_statistics` of every layer, [K, L, F], reading stacks [K, *shape] one by one.

    Examples:
        >>> stacks = [torch.ones(2, 3, 3), torch.zeros(2, 5)]  # 2 experts, 2 layers
        >>> layer_statistics(stacks, features=["mean", "norm"])[0]
        tensor([[1., 3.], [0., 0.]])
    """
    return torch.stack([weight_statistics(stack, rank, features) for stack in stacks], dim=1)


def standard_statistics(
    vectors: TaskVectors, of: Of, rank: int = 3, features: Sequence[Feature] = FEATURES
) -> Tensor:
    """Return standardised `layer_statistics` of the experts' weights or task vectors, [K, L, F].

    Examples:
        >>> experts = {"mnist": {"w": torch.ones(2)}, "cars": {"w": 3 * torch.ones(2)}}
        >>> vectors = TaskVectors({"w": torch.zeros(2)}, experts)
        >>> standard_statistics(vectors, "task_vectors", features=["mean"]).flatten()
        tensor([-1., 1.])
    """
    read = vectors.weights if of == "experts" else vectors.__getitem__
    stacks = map(read, tracked(vectors.names, "statistics of weights"))
    return standardize(layer_statistics(stacks, rank, features))


def standardize(features: Tensor) -> Tensor:
    """Return features with zero mean and unit variance over (task, layer), [K, L, F].

    A constant feature becomes 0.

    Examples:
        >>> standardize(torch.tensor([[[1.0, 7.0]], [[3.0, 7.0]]])).squeeze(1)
        tensor([[-1., 0.], [ 1., 0.]])
    """
    wide = features.double()
    centred = wide - wide.mean((0, 1))
    deviation = centred.square().mean((0, 1)).sqrt()
    constant = deviation <= 1e-12 * wide.abs().amax((0, 1))
    return torch.where(constant, 0.0, centred / deviation.where(~constant, 1.0)).to(features.dtype)
