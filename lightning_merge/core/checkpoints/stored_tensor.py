"""Tensors that lie in files of torch.save, each known to lie within its storage."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.flat import flat_part
from lightning_merge.core.checkpoints.pickle_machine import Record
from lightning_merge.core.checkpoints.source import SourceFile
from lightning_merge.core.errors import InputError

_MOST_DIMENSIONS = 64  # as in torch


@dataclass(slots=True, eq=False)
class Storage:
    """A run of bytes in the file: where torch keeps the values of one or more tensors."""

    source: SourceFile
    dtype: torch.dtype
    size: int  # bytes
    start: int | None = None  # unknown until the legacy format's end is read


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor that lies in a file of torch.save."""

    storage: Storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # elements

    @property
    def source(self) -> SourceFile:
        """The file that it lies in."""
        return self.storage.source

    @property
    def identity(self) -> Hashable:
        """Equal for two names exactly when they denote the same values in the file."""
        return (self.storage.start, self.offset, self.dtype, self.shape, self.stride)

    def read(self) -> Tensor:
        """Return the tensor, in memory of its own."""
        count = _extent(self.shape, self.stride) if math.prod(self.shape) else 0
        flat = torch.empty(count, dtype=self.dtype)
        self._fill(flat, self.offset)
        return flat.as_strided(self.shape, self.stride)

    def read_into(self, start: int, out: Tensor) -> None:
        """Fill `out` ([n]) with elements start..start+n.

        Of a tensor that is not contiguous, all that lies between the rows' ends is read: of a
        transposed one, everything.
        """
        if _contiguous(self.shape, self.stride):
            return self._fill(out, self.offset + start)
        row = math.prod(self.shape[1:])
        first, last = start // row, -(-(start + out.numel()) // row)
        offset, shape = self.offset + first * self.stride[0], (last - first, *self.shape[1:])
        rows = StoredTensor(self.storage, self.dtype, shape, self.stride, offset).read()
        start -= first * row
        out.copy_(flat_part(rows, start, start + out.numel()))

    def _fill(self, out: Tensor, offset: int) -> None:
        """Fill `out` with what follows element `offset` of the storage."""
        assert self.storage.start is not None, "checked when the file was opened"
        self.source.fill(out, self.storage.start + offset * self.dtype.itemsize, self.dtype)


def placed(
    storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any
) -> StoredTensor:
    """Return a tensor whose every element is known to lie within its storage."""
    offset, shape, stride = natural(offset), _naturals(shape), _naturals(stride)
    if len(shape) != len(stride) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError("a tensor of impossible dimensions")
    if math.prod(size or 1 for size in shape) >= 2**62:
        raise ValueError("a tensor of impossible shape")
    numel = math.prod(shape)
    end = (offset + _extent(shape, stride)) * dtype.itemsize if numel else 0
    if end > storage.size:
        raise ValueError("a tensor reaches beyond its storage")
    if numel * dtype.itemsize > storage.size:
        raise InputError("holds an expanded tensor: save it again after .contiguous()")
    return StoredTensor(storage, dtype, shape, stride, offset)


def _contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether a tensor's elements lie one after the other."""
    step = 1
    for size, found in zip(reversed(shape), reversed(stride), strict=True):
        if size > 1 and found != step:
            return False
        step *= size
    return True


def _extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first to the last one of a tensor that is not empty."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def natural(value: Any) -> int:
    """Return a size or place that a file claims, if it can be one."""
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError("a size that is no natural number")
    return value


def _naturals(values: Any) -> tuple[int, ...]:
    if isinstance(values, Record) and values.args:  # TorchScript's typed lists
        values = values.args[0]
    return tuple(natural(value) for value in values)
