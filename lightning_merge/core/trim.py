"""Trimming: zero all but the largest entries of task vectors.

Functions take a stack [K, *shape] of task vectors (or one of them) and return a new tensor
of the same shape; the magnitudes decide, every expert is trimmed on its own.
"""

import torch
from torch import Tensor

from lightning_merge.core.task_vectors import StackMap, TaskVectors, flatten_tasks, per_task


def keep_largest(values: Tensor, counts: Tensor) -> Tensor:
    """Zero all but the largest magnitudes along the last dimension.

    Args:
        values: [..., n].
        counts: How many entries to keep, int64, broadcastable to [...]. Among equal
            magnitudes the first ones are kept, so exactly that many stay.
    """
    counts = counts.to(values.device).expand(values.shape[:-1])[..., None]
    most = int(counts.max()) if counts.numel() else 0
    if most == 0 or values.shape[-1] == 0:
        return torch.zeros_like(values)
    magnitude = values.abs()
    threshold = _count_th_largest(magnitude, counts, most)
    keep = magnitude >= threshold
    if bool((keep.sum(-1, keepdim=True) > counts).any()):
        above = magnitude > threshold
        equal = keep ^ above
        keep = above | (equal & (equal.cumsum(-1) <= counts - above.sum(-1, keepdim=True)))
    return torch.where(keep, values, 0.0)


def _count_th_largest(magnitude: Tensor, counts: Tensor, most: int) -> Tensor:
    """The counts-th largest entry along the last dimension, [..., 1]; infinite for count 0."""
    if bool((counts == most).all()):
        return magnitude.kthvalue(magnitude.shape[-1] - most + 1, dim=-1, keepdim=True).values
    largest = magnitude.topk(most, dim=-1).values
    threshold = largest.gather(-1, (counts - 1).clamp(min=0))
    return torch.where(counts > 0, threshold, torch.inf)


def trim_tensor(task_vector: Tensor, density: float) -> Tensor:
    """Keep the floor(numel * density) largest magnitudes of every expert's tensor.

    Args:
        task_vector: Stack [K, *shape].
        density: Fraction kept, in [0, 1].
    """
    flat = flatten_tasks(task_vector)
    counts = torch.tensor(int(flat.shape[1] * density))
    return keep_largest(flat, counts).view_as(task_vector)


def trim_rows(task_vector: Tensor, keep_ratios: Tensor) -> Tensor:
    """Keep in row j the floor(in_features * keep_ratios[j]) largest magnitudes.

    M-TIES, Algorithm 1, line 19: all weights that feed node j are one row.

    Args:
        task_vector: One task vector [out, in], or a stack [K, out, in].
        keep_ratios: Fraction kept per row, [out], in [0, 1]; [K, out] for one per expert.
    """
    counts = (keep_ratios.double() * task_vector.shape[-1]).floor().long()
    return keep_largest(task_vector, counts)


def magnitude_thresholds(vectors: TaskVectors, density: float) -> Tensor:
    """Smallest magnitude that TIES keeps, over all parameters of each expert, [K].

    It is the (d - floor(d * density))-th smallest of the d magnitudes, zeros included, as
    in the code published with TIES (Yadav et al. 2023): floor(d * density) + 1 entries reach
    it. Density 0 keeps nothing (an infinite threshold), density 1 everything (zero).
    """
    total = sum(vectors.base[name].numel() for name in vectors.names)
    rank = total - int(total * density)
    if density == 0 or rank == 0:
        return torch.full((len(vectors),), torch.inf if density == 0 else 0.0)
    return _kth_smallest_magnitudes(vectors, rank)


def _kth_smallest_magnitudes(vectors: TaskVectors, rank: int) -> Tensor:
    """Exact selection over every expert's concatenated magnitudes, [K]."""
    magnitudes = torch.cat([flatten_tasks(vectors[name]).abs() for name in vectors.names], dim=1)
    return magnitudes.kthvalue(rank, dim=1).values


def global_trim(vectors: TaskVectors, density: float) -> StackMap:
    """The map that trims every expert at its own `magnitude_thresholds`."""
    thresholds = magnitude_thresholds(vectors, density)

    def trim(name: str, stacked: Tensor) -> Tensor:
        return torch.where(stacked.abs() >= per_task(thresholds, stacked), stacked, 0.0)

    return trim


def tensor_trim(density: float) -> StackMap:
    """The map that trims every tensor of every expert to the same density."""
    return lambda name, stacked: trim_tensor(stacked, density)
