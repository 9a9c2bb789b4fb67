"""Equality of tensors of two checkpoints, decided while reading as little as possible."""

from collections.abc import Iterator
from itertools import chain, repeat

import torch

from lightning_merge.core.checkpoints.flat import BLOCK
from lightning_merge.core.checkpoints.lazy import Checkpoint

_FIRST, _MORE = 8, 2**12  # entries to compare first: most unequal tensors differ there


def same_bits(one: Checkpoint, name: str, other: Checkpoint, other_name: str) -> bool:
    """Whether two tensors of equal shape and dtype are equal bit for bit, NaN and -0 included.

    Args:
        one: The checkpoint of the first tensor.
        name: Its name.
        other: The checkpoint of the second tensor.
        other_name: Its name.

    Examples:
        >>> from lightning_merge.core.checkpoints.lazy import as_checkpoint
        >>> zeros = as_checkpoint({"a": torch.tensor([0.0]), "b": torch.tensor([-0.0])})
        >>> same_bits(zeros, "a", zeros, "a"), same_bits(zeros, "a", zeros, "b")
        (True, False)
    """
    in_memory = one.path is None and other.path is None
    if in_memory and one.identity(name) == other.identity(other_name) is not None:
        return True
    for start, stop in runs(one.numel(name)):
        pair = torch.empty(2, stop - start, dtype=one.dtype(name))
        one.read_into(name, start, pair[0])
        other.read_into(other_name, start, pair[1])
        first, second = pair.view(torch.uint8)
        if not torch.equal(first, second):
            return False
    return True


def differ(one: Checkpoint, other: Checkpoint, name: str) -> bool:
    """Whether a tensor has different shapes or values in two checkpoints, whatever the dtypes.

    Args:
        one: A checkpoint.
        other: Another checkpoint.
        name: The tensor's name in both.

    Examples:
        >>> from lightning_merge.core.checkpoints.lazy import as_checkpoint
        >>> single = as_checkpoint({"w": torch.tensor([0.5])})
        >>> half = as_checkpoint({"w": torch.tensor([0.5], dtype=torch.float16)})
        >>> differ(single, half, "w")
        False
    """
    if one.shape(name) != other.shape(name):
        return True
    if one.dtype(name) == other.dtype(name):
        return not same_bits(one, name, other, name)
    dtype = _wide(one.dtype(name), other.dtype(name))
    for start, stop in runs(one.numel(name)):
        pair = torch.empty(2, stop - start, dtype=dtype)
        one.read_into(name, start, pair[0])
        other.read_into(name, start, pair[1])
        if not bool(((pair[0] == pair[1]) | pair.isnan().all(0)).all()):
            return True
    return False


def _wide(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """Return a type that holds the values of two types of the same kind."""
    if one.is_complex or other.is_complex:
        return torch.complex128
    if not one.is_floating_point and not other.is_floating_point:
        return torch.int64
    return torch.float64 if torch.float64 in (one, other) else torch.float32


def runs(size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges [start, stop) of a tensor's entries to compare together, few entries at first.

    Args:
        size: Number of entries.

    Examples:
        >>> list(runs(5000))
        [(0, 8), (8, 4104), (4104, 5000)]
    """
    start = 0
    for step in chain((_FIRST, _MORE), repeat(BLOCK)):
        if start >= size:
            return
        yield start, min(size, start + step)
        start += step
