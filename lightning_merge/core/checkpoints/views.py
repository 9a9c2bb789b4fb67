"""Tensors computed from others when they are read: concatenated, sliced or transposed."""

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.flat import flat_part
from lightning_merge.core.checkpoints.source import SourceFile

if TYPE_CHECKING:
    from lightning_merge.core.checkpoints.lazy import Entry


def sources_of(entry: Any) -> Iterator[SourceFile]:
    """Yield the files that a tensor is read from.

    Args:
        entry: A tensor of a checkpoint.

    Examples:
        >>> from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
        >>> path = save_checkpoint({"w": torch.ones(2)}, "w.safetensors")
        >>> entry = open_checkpoint(path).entry("w")
        >>> [source.path.name for source in sources_of(Joined((entry, entry)))]
        ['w.safetensors', 'w.safetensors']
    """
    for part in getattr(entry, "parts", ()):
        yield from sources_of(part)
    if not hasattr(entry, "parts") and entry.source is not None:
        yield entry.source


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    parts: "tuple[Entry, ...]"

    @property
    def source(self) -> SourceFile | None:
        """The file of the first part, for messages; see `sources_of`."""
        return self.parts[0].source

    @property
    def dtype(self) -> torch.dtype:
        """The smallest type that holds the values of all parts."""
        return reduce(torch.promote_types, (part.dtype for part in self.parts))

    @property
    def identity(self) -> Hashable:
        """A key shared by equal views of tied tensors."""
        parts = tuple(part.identity for part in self.parts)
        return None if None in parts else (type(self).__name__, *self._place(), *parts)

    def _place(self) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True, slots=True, eq=False)
class Joined(_View):
    """Tensors concatenated along the first axis.

    Examples:
        >>> from lightning_merge.core.checkpoints.lazy import as_checkpoint
        >>> entry = as_checkpoint({"w": torch.tensor([[1, 2], [3, 4]])}).entry("w")
        >>> Joined((entry, entry)).shape
        (4, 2)
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape: the numbers of rows add up."""
        first = self.parts[0].shape
        return (sum(part.shape[0] for part in self.parts), *first[1:])

    def read(self) -> Tensor:
        """Return the tensor."""
        return torch.cat([part.read().to(self.dtype) for part in self.parts])

    def read_into(self, start: int, out: Tensor) -> None:
        """Fill `out` ([n]) with elements start..start+n."""
        begin = 0
        for part in self.parts:
            size = math.prod(part.shape)
            first, last = max(start, begin), min(start + out.numel(), begin + size)
            if first < last:
                part.read_into(first - begin, out[first - start : last - start])
            begin += size


@dataclass(frozen=True, slots=True, eq=False)
class Rows(_View):
    """A range of rows of a tensor.

    Attributes:
        first: First row.
        count: Number of rows.

    Examples:
        >>> from lightning_merge.core.checkpoints.lazy import as_checkpoint
        >>> entry = as_checkpoint({"w": torch.tensor([[1, 2], [3, 4], [5, 6]])}).entry("w")
        >>> Rows((entry,), first=1, count=2).read()
        tensor([[3, 4],
                [5, 6]])
    """

    first: int
    count: int

    def _place(self) -> tuple[int, ...]:
        return (self.first, self.count)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape: fewer rows."""
        return (self.count, *self.parts[0].shape[1:])

    def read(self) -> Tensor:
        """Return the tensor."""
        out = torch.empty(self.shape, dtype=self.dtype)
        self.read_into(0, out.view(-1))
        return out

    def read_into(self, start: int, out: Tensor) -> None:
        """Fill `out` ([n]) with elements start..start+n."""
        row = math.prod(self.parts[0].shape[1:])
        self.parts[0].read_into(self.first * row + start, out)


@dataclass(frozen=True, slots=True, eq=False)
class Transposed(_View):
    """The transpose of a matrix.

    Examples:
        >>> from lightning_merge.core.checkpoints.lazy import as_checkpoint
        >>> entry = as_checkpoint({"w": torch.tensor([[1, 2], [3, 4]])}).entry("w")
        >>> Transposed((entry,)).read()
        tensor([[1, 3],
                [2, 4]])
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape: rows and columns exchanged."""
        return self.parts[0].shape[::-1]

    def read(self) -> Tensor:
        """Return the tensor."""
        return self.parts[0].read().T.contiguous()

    def read_into(self, start: int, out: Tensor) -> None:
        """Fill `out` ([n]) with elements start..start+n; the whole matrix is read for them."""
        out.copy_(flat_part(self.read(), start, start + out.numel()))
