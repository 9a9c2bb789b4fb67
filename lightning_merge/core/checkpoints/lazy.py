"""Lazy, read-only mappings from names to tensors, in files or in memory."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.flat import flat_part
from lightning_merge.core.checkpoints.source import SourceFile, reading
from lightning_merge.core.checkpoints.views import sources_of
from lightning_merge.core.errors import InputError


class Entry(Protocol):
    """One tensor of a checkpoint, read on demand.

    Examples:
        >>> entry = as_checkpoint({"w": torch.ones(2, 3)}).entry("w")
        >>> entry.shape, entry.dtype
        ((2, 3), torch.float32)
    """

    @property
    def source(self) -> SourceFile | None:
        """The file that holds it; None in memory."""

    @property
    def dtype(self) -> torch.dtype:
        """Its stored dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, known without reading."""

    @property
    def identity(self) -> Hashable:
        """A key that tied tensors share; None if ties cannot be known."""

    def read(self) -> Tensor:
        """Return the tensor."""

    def read_into(self, start: int, out: Tensor) -> None:
        """Fill `out` ([n]) with elements start..start+n, converted to its dtype."""


@dataclass(frozen=True, slots=True, eq=False)
class _MappingEntry:
    """A tensor of any mapping."""

    mapping: Mapping[str, Tensor]
    name: str

    def read(self) -> Tensor:
        return self.mapping[self.name]

    def read_into(self, start: int, out: Tensor) -> None:
        out.copy_(flat_part(self.read().detach(), start, start + out.numel()))

    @property
    def source(self) -> None:
        return None

    @property
    def dtype(self) -> torch.dtype:
        return self.read().dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.read().shape)

    @property
    def identity(self) -> Hashable:
        if not isinstance(self.mapping, dict):  # others may create a new tensor at each access
            return None
        tensor = self.read()
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        return place if tensor.numel() and tensor.device.type != "meta" else None


class Checkpoint(Mapping[str, Tensor]):
    """A lazy, read-only mapping from names to tensors in their stored dtype.

    Names, shapes and dtypes are known at once; a tensor is read at each access and not kept. Names
    keep the order of the file. Several threads may read at once.

    Args:
        entries: By name.
        path: The file or folder, if there is one.
        metadata: Text by name.

    Attributes:
        path: The file or folder; None for tensors in memory.
        metadata: The metadata of a safetensors file; empty for other formats.

    Examples:
        >>> weights = as_checkpoint({"w": torch.arange(6.0).reshape(2, 3)})
        >>> weights.shape("w"), weights.numel("w")
        ((2, 3), 6)
        >>> part = torch.empty(2)
        >>> weights.read_into("w", 3, part)
        >>> part
        tensor([3., 4.])
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        *,
        path: Path | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._entries = dict(entries)
        self.path = path
        self.metadata = dict(metadata or {})

    def __getitem__(self, name: str) -> Tensor:
        with self._reading(name) as entry:
            return entry.read()

    def read_into(self, name: str, start: int, out: Tensor) -> None:
        """Fill `out` with elements start..start+n of the flattened tensor, in the dtype of `out`.

        If the file has that dtype and `out` is on the CPU, the bytes go straight into its memory.

        Args:
            name: The tensor.
            start: First element.
            out: [n], contiguous, of any dtype and device; its values are replaced.

        Raises:
            IndexError: The tensor has fewer elements.
            InputError: The file cannot be read, or was truncated in the meantime.
        """
        stop = start + out.numel()
        if out.ndim != 1 or not 0 <= start <= stop <= math.prod(self.shape(name)):
            raise IndexError(f"'{name}' {self.shape(name)} has no run of elements {start}..{stop}")
        with self._reading(name) as entry:
            entry.read_into(start, out)

    @contextmanager
    def _reading(self, name: str) -> Iterator[Entry]:
        entry = self._entries[name]
        if entry.source is None:
            yield entry
        else:
            with reading(f"{entry.source.path}: tensor '{name}'"):
                yield entry

    def check_unchanged(self) -> None:
        """Check that the files behind this checkpoint are still those that were opened.

        Raises:
            InputError: A file was changed, replaced or removed; values may be of either version.
        """
        for source in {s for entry in self._entries.values() for s in sources_of(entry)}:
            source.check_unchanged()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path) if self.path else 'in memory'!r}, {len(self)} tensors)"

    def dtype(self, name: str) -> torch.dtype:
        """Return the stored dtype of a tensor, without reading it."""
        return self._entries[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, without reading it."""
        return self._entries[name].shape

    def numel(self, name: str) -> int:
        """Return the number of entries of a tensor, without reading it."""
        return math.prod(self._entries[name].shape)

    def identity(self, name: str) -> Hashable:
        """Return a key that names of one stored tensor share; None if ties cannot be known."""
        return self._entries[name].identity

    def ties(self) -> list[tuple[str, ...]]:
        """Return groups of names that share a tensor; safetensors files do not record ties."""
        groups = defaultdict(list)
        for name, entry in self._entries.items():
            if (identity := entry.identity) is not None:
                groups[identity].append(name)
        return [tuple(names) for names in groups.values() if len(names) > 1]

    def entry(self, name: str) -> Entry:
        """Return the entry of a tensor."""
        return self._entries[name]

    def joined(self, other: "Checkpoint") -> "Checkpoint":
        """Return a view of these tensors and another checkpoint's, which has other names."""
        entries = {**other._entries, **self._entries}
        return Checkpoint(entries, path=self.path, metadata=self.metadata)

    def renamed(self, names: Mapping[str, str]) -> "Checkpoint":
        """Return a view with the names `{new: present}` and no others."""
        entries = {new: self._entries[present] for new, present in names.items()}
        return Checkpoint(entries, path=self.path, metadata=self.metadata)


class Described(NamedTuple):
    """A tensor of which only the header is known; it cannot be read.

    Attributes:
        name: Its name.
        dtype: Its stored type.
        shape: Its shape.

    Examples:
        >>> Described("w", torch.float32, (2, 3)).shape
        (2, 3)
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def source(self) -> None:
        """None: it lies in no local file."""

    @property
    def identity(self) -> None:
        """None: headers do not record ties."""

    def read(self) -> Tensor:
        """Raise InputError: the values are elsewhere."""
        raise InputError(f"the values of '{self.name}' have not been downloaded")

    def read_into(self, start: int, out: Tensor) -> None:
        """Raise InputError: see `read`."""
        out.copy_(self.read())


def as_checkpoint(tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Return any mapping of tensors as a `Checkpoint`, without reading or copying.

    Args:
        tensors: By name.

    Examples:
        >>> as_checkpoint({"w": torch.ones(2), "b": torch.zeros(1)})
        Checkpoint('in memory', 2 tensors)
    """
    if isinstance(tensors, Checkpoint):
        return tensors
    return Checkpoint({name: _MappingEntry(tensors, name) for name in tensors})
