"""Tensors of a checkpoint that are made of others when they are read: joined, parted, turned."""

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
    """Yield the files that a tensor is read from."""
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
        """The type that holds the values of all parts."""
        return reduce(torch.promote_types, (part.dtype for part in self.parts))

    @property
    def identity(self) -> Hashable:
        """Equal for what is made alike of tied tensors."""
        parts = tuple(part.identity for part in self.parts)
        return None if None in parts else (type(self).__name__, *self._place(), *parts)

    def _place(self) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True, slots=True, eq=False)
class Joined(_View):
    """Tensors one below the other."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape: rows add up."""
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
    """Some rows of a tensor, from `first` on."""

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
class Turned(_View):
    """A matrix whose rows are another one's columns."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape: the other way round."""
        return self.parts[0].shape[::-1]

    def read(self) -> Tensor:
        """Return the tensor."""
        return self.parts[0].read().T.contiguous()

    def read_into(self, start: int, out: Tensor) -> None:
        """Fill `out` ([n]) with elements start..start+n; all of the matrix is read for them."""
        out.copy_(flat_part(self.read(), start, start + out.numel()))
