"""Tensors in files of torch.save, each checked to lie within its storage."""

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
    """A run of bytes in a file that holds the values of one or more tensors.

    Attributes:
        source: The file.
        dtype: Type of its elements.
        size: Bytes.
        start: Position in the file; None until the end of a file in the legacy format is read.

    Examples:
        >>> from pathlib import Path
        >>> _ = Path("values").write_bytes(torch.arange(6.0).numpy().tobytes())
        >>> Storage(SourceFile("values"), torch.float32, size=24, start=0).size
        24
    """

    source: SourceFile
    dtype: torch.dtype
    size: int
    start: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor in a file of torch.save.

    Attributes:
        storage: Where its values are.
        dtype: Type of its elements.
        shape: Its shape.
        stride: Elements between neighbours along each axis.
        offset: Elements of the storage before its first one.

    Examples:
        >>> from pathlib import Path
        >>> _ = Path("values").write_bytes(torch.arange(6.0).numpy().tobytes())
        >>> storage = Storage(SourceFile("values"), torch.float32, size=24, start=0)
        >>> StoredTensor(storage, torch.float32, shape=(2,), stride=(3,), offset=1).read()
        tensor([1., 4.])
    """

    storage: Storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def source(self) -> SourceFile:
        """The file that holds it."""
        return self.storage.source

    @property
    def identity(self) -> Hashable:
        """A key that two names share exactly if they denote the same values in the file."""
        return (self.storage.start, self.offset, self.dtype, self.shape, self.stride)

    def read(self) -> Tensor:
        """Return the tensor, in its own memory."""
        count = _extent(self.shape, self.stride) if math.prod(self.shape) else 0
        flat = torch.empty(count, dtype=self.dtype)
        self._fill(flat, self.offset)
        return flat.as_strided(self.shape, self.stride)

    def read_into(self, start: int, out: Tensor) -> None:
        """Fill `out` ([n]) with elements start..start+n.

        For a tensor that is not contiguous, everything between the ends of the rows is read: for a
        transposed one, the whole tensor.
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
        """Fill `out` with the elements from `offset` of the storage on."""
        assert self.storage.start is not None, "checked when the file was opened"
        self.source.fill(out, self.storage.start + offset * self.dtype.itemsize, self.dtype)


def placed(
    storage: Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any
) -> StoredTensor:
    """Return a tensor after checking that every element lies within its storage.

    Args:
        storage: Where its values are.
        dtype: Type of its elements.
        offset: Elements of the storage before its first one.
        shape: Its shape.
        stride: Elements between neighbours along each axis.

    Raises:
        ValueError: It is malformed or reaches beyond the storage.
        InputError: It was expanded, so that it is larger than its storage.

    Examples:
        >>> from pathlib import Path
        >>> _ = Path("values").write_bytes(torch.arange(6.0).numpy().tobytes())
        >>> storage = Storage(SourceFile("values"), torch.float32, size=24, start=0)
        >>> placed(storage, torch.float32, 0, (3, 3), (3, 1))
        Traceback (most recent call last):
        ValueError: a tensor reaches beyond its storage
    """
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
    """Whether a tensor's elements are consecutive."""
    step = 1
    for size, stored in zip(reversed(shape), reversed(stride), strict=True):
        if size > 1 and stored != step:
            return False
        step *= size
    return True


def _extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Return the number of elements from a tensor's first to its last; it must not be empty."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def natural(value: Any) -> int:
    """Return a size or position that a file claims, after checking that it can be one.

    Raises:
        ValueError: It is not an integer, or is negative or too large.

    Examples:
        >>> natural(3)
        3
        >>> natural(-1)
        Traceback (most recent call last):
        ValueError: a size that is not a natural number
    """
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError("a size that is not a natural number")
    return value


def _naturals(values: Any) -> tuple[int, ...]:
    if isinstance(values, Record) and values.args:  # TorchScript's typed lists
        values = values.args[0]
    return tuple(natural(value) for value in values)
