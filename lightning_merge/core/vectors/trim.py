"""Trimming task vectors to their largest magnitudes: per row, per tensor, or globally."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.selection import kth_smallest_magnitude
from lightning_merge.core.vectors.task_vectors import TaskVectors, TileMap
from lightning_merge.core.vectors.tiles import Span, whole_rows


def keep_largest(values: Tensor, counts: Tensor) -> Tensor:
    """Zero all but the largest magnitudes along the last dimension.

    Args:
        values: [..., n].
        counts: Number of entries to keep, int64, broadcastable to [...]. Among equal
            magnitudes the first ones are kept, so exactly that many stay.

    Examples:
        >>> keep_largest(torch.tensor([[1.0, -3.0, 2.0], [5.0, 4.0, 6.0]]), torch.tensor([2, 1]))
        tensor([[ 0., -3., 2.], [ 0., 0., 6.]])
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
    """Return the counts-th largest entry of the last dimension, [..., 1]; infinite for count 0."""
    if bool((counts == most).all()):
        return magnitude.kthvalue(magnitude.shape[-1] - most + 1, dim=-1, keepdim=True).values
    largest = magnitude.topk(most, dim=-1).values
    threshold = largest.gather(-1, (counts - 1).clamp(min=0))
    return torch.where(counts > 0, threshold, torch.inf)


def trim_rows(task_vector: Tensor, keep_ratios: Tensor) -> Tensor:
    """Keep in row j the floor(in_features * keep_ratios[j]) largest magnitudes.

    M-TIES, Algorithm 1, line 19: all weights that feed node j are one row.

    Args:
        task_vector: One task vector [out, in], or a stack [K, out, in].
        keep_ratios: Fraction kept per row, [out], in [0, 1]; [K, out] for one per expert.

    Raises:
        InputError: A ratio is outside [0, 1].

    Examples:
        >>> trim_rows(torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.tensor([0.5, 1.0]))
        tensor([[ 0., -2.], [ 3., 4.]])
    """
    if not bool(((keep_ratios >= 0) & (keep_ratios <= 1)).all()):
        raise InputError("keep_ratios has values outside [0, 1]: give fractions of a row")
    counts = (keep_ratios.double() * task_vector.shape[-1]).floor().long()
    return keep_largest(task_vector, counts)


class Cut(NamedTuple):
    """Magnitudes that a trim keeps of one tensor, per expert.

    Attributes:
        thresholds: The smallest magnitude that stays, K numbers.
        ends: Entries that equal the threshold stay before this position; None for all of them.

    Examples:
        >>> cut = Cut(thresholds=[2.0], ends=[2])  # of equal magnitudes, those before position 2
        >>> cut(torch.tensor([[1.0, 2.0, -2.0, 3.0]]), start=0)
        tensor([[0., 2., 0., 3.]])
    """

    thresholds: list[float]
    ends: list[int] | None = None

    def __call__(self, tile: Tensor, start: int) -> Tensor:
        """Trim in place a tile [K, n] whose first entry is at position `start`."""
        for k, (row, threshold) in enumerate(zip(tile, self.thresholds, strict=True)):
            if self.ends is not None and (first := self.ends[k] - start) < len(row):
                tail = row[max(first, 0) :]
                tail.masked_fill_(tail.abs() == threshold, 0.0)
            torch.hardshrink(row, _just_below(threshold, row.dtype), out=row)
        return tile


def _just_below(threshold: float, dtype: torch.dtype) -> float:
    """Return the number below a threshold: hardshrink keeps values larger than its bound."""
    number = torch.tensor(threshold, dtype=dtype)
    return float(torch.nextafter(number, torch.zeros_like(number)))


def global_trim(vectors: TaskVectors, density: float) -> TileMap:
    """Return the map that trims every expert at its own `magnitude_thresholds`.

    Examples:
        >>> base, expert = {"w": torch.zeros(4)}, {"w": torch.tensor([1.0, -4.0, 2.0, 3.0])}
        >>> vectors = TaskVectors(base, {"mnist": expert})
        >>> vectors.map(global_trim(vectors, density=0.25))["w"]
        tensor([[ 0., -4., 0., 3.]])
    """
    cut = Cut(magnitude_thresholds(vectors, density).tolist())
    return lambda span, tile: cut(tile, span.start)


def magnitude_thresholds(vectors: TaskVectors, density: float) -> Tensor:
    """Return the smallest magnitude that TIES keeps, over all parameters of each expert, [K].

    It is the (d - floor(d * density))-th smallest of the d magnitudes, zeros included, as
    in the code published with TIES (Yadav et al. 2023): floor(d * density) + 1 entries reach
    it. Density 0 keeps nothing (an infinite threshold), density 1 everything (zero).

    Examples:
        >>> base, expert = {"w": torch.zeros(4)}, {"w": torch.tensor([1.0, -4.0, 2.0, 3.0])}
        >>> magnitude_thresholds(TaskVectors(base, {"mnist": expert}), density=0.25)
        tensor([3.])
    """
    total = sum(vectors.numel(name) for name in vectors.names)
    rank = total - int(total * density)
    if density == 0 or rank == 0:
        return torch.full((len(vectors),), torch.inf if density == 0 else 0.0)
    return kth_smallest_magnitude(vectors, vectors.names, rank).value


def tensor_trim(vectors: TaskVectors, density: float) -> TileMap:
    """Return the map that keeps the floor(numel * density) largest magnitudes of every tensor.

    Among equal magnitudes the first ones are kept, so exactly that many stay, fewer only if zeros
    are among them.

    Examples:
        >>> base, expert = {"w": torch.zeros(4)}, {"w": torch.tensor([1.0, -4.0, 4.0, 3.0])}
        >>> vectors = TaskVectors(base, {"mnist": expert})
        >>> vectors.map(tensor_trim(vectors, density=0.25))["w"]
        tensor([[ 0., -4., 0., 0.]])
    """
    cuts: Callable[[str], Cut] = cache(lambda name: _tensor_cut(vectors, name, density))
    return lambda span, tile: cuts(span.name)(tile, span.start)


def _tensor_cut(vectors: TaskVectors, name: str, density: float) -> Cut:
    total = vectors.numel(name)
    count = int(total * density)
    if count in (0, total):
        return Cut([0.0 if count else torch.inf] * len(vectors))
    rank = total - count + 1
    thresholds, less = kth_smallest_magnitude(vectors, (name,), rank)
    values = thresholds.tolist()
    excess = [rank - 1 - n if value else 0 for n, value in zip(less.tolist(), values, strict=True)]
    return Cut(values, _ends(vectors, name, values, excess) if any(excess) else None)


def _ends(vectors: TaskVectors, name: str, thresholds: list[float], excess: list[int]) -> list[int]:
    """Return the positions from which `excess` entries equal to the threshold are dropped."""
    ends, left = [vectors.numel(name)] * len(vectors), list(excess)
    for span in reversed([*vectors.spans(name)]):
        if not any(left):
            break
        for k, row in enumerate(vectors.read(span)):
            equal = (row.abs() == thresholds[k]).nonzero().flatten()
            if taken := min(left[k], len(equal)):
                ends[k], left[k] = span.start + int(equal[-taken]), left[k] - taken
    return ends


def row_trim(vectors: TaskVectors, keep_ratios: dict[str, Tensor], other: TileMap) -> TileMap:
    """Return the map that trims rows [out, rest] by ratios [out], and applies `other` elsewhere.

    Examples:
        >>> base = {"fc": torch.zeros(2, 2)}
        >>> vectors = TaskVectors(base, {"mnist": {"fc": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}})
        >>> trim = row_trim(vectors, {"fc": torch.tensor([0.5, 1.0])}, global_trim(vectors, 0.2))
        >>> vectors.map(trim)["fc"]
        tensor([[[0., 2.], [3., 4.]]])
    """

    def trim(span: Span, tile: Tensor) -> Tensor:
        if span.name not in keep_ratios:
            return other(span, tile)
        shape = vectors.base.shape(span.name)
        ratios = keep_ratios[span.name][whole_rows(span, shape, len(tile))]
        return trim_rows(tile.view(len(tile), len(ratios), -1), ratios).flatten(1)

    return trim
