"""Checkpoints as lazy, read-only mappings from names to tensors, and how they are written."""

import math
import os
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import torch
from torch import Tensor

from lightning_merge.core.errors import InputError, warn
from lightning_merge.core.files import atomic_write, claim, file_hash
from lightning_merge.core.flat import flat_part
from lightning_merge.core.names import enumerate_names, match_names
from lightning_merge.core.safetensors_file import parse_json, read_header
from lightning_merge.core.source import Source, reading
from lightning_merge.core.unpickle import find_tensors
from lightning_merge.core.writer import CheckpointWriter

__all__ = [
    "Checkpoint",
    "as_checkpoint",
    "atomic_write",
    "file_hash",
    "match_names",
    "open_checkpoint",
    "save_checkpoint",
    "select",
]


class Entry(Protocol):
    """Where one tensor of a checkpoint is to be had."""

    @property
    def source(self) -> Source | None:
        """The file it is in; None in memory."""

    @property
    def dtype(self) -> torch.dtype:
        """Stored dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, known without reading."""

    @property
    def identity(self) -> Hashable:
        """Equal for tied tensors; None where that cannot be known."""

    def read(self) -> Tensor:
        """The tensor."""

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
        if not isinstance(self.mapping, dict):  # others may make a new tensor at each call
            return None
        tensor = self.read()
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        return place if tensor.numel() and tensor.device.type != "meta" else None


class Checkpoint(Mapping[str, Tensor]):
    """A lazy, read-only mapping from names to tensors in their stored dtype.

    Names, shapes and dtypes are known at once; a tensor is read each time it is asked for, and
    nothing is kept. Names come in the order of the file. Several threads may read at once.

    Attributes:
        path: the file or folder, None for a view of tensors in memory.
        metadata: what a safetensors file says about itself; empty for others.
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

        Where the file has that dtype and `out` is on the CPU, the bytes go straight into its
        memory.

        Args:
            name: the tensor.
            start: first element.
            out: [n], contiguous, of any dtype and device; its values are replaced.

        Raises:
            IndexError: the tensor has fewer elements.
            InputError: the file cannot be read, or was cut meanwhile.
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
        """Check that the files behind this checkpoint are those that were opened.

        Raises:
            InputError: one was changed, replaced or removed; values read may be from either.
        """
        for source in {entry.source for entry in self._entries.values()}:
            if source is not None:
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
        """Stored dtype of a tensor, without reading it."""
        return self._entries[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._entries[name].shape

    def numel(self, name: str) -> int:
        """Number of entries of a tensor, without reading it."""
        return math.prod(self._entries[name].shape)

    def identity(self, name: str) -> Hashable:
        """Equal for two names of one stored tensor; None where the source does not tell."""
        return self._entries[name].identity

    def ties(self) -> list[tuple[str, ...]]:
        """Groups of names that share one tensor, where the source tells (safetensors does not)."""
        groups = defaultdict(list)
        for name, entry in self._entries.items():
            if (identity := entry.identity) is not None:
                groups[identity].append(name)
        return [tuple(names) for names in groups.values() if len(names) > 1]

    def renamed(self, names: Mapping[str, str]) -> "Checkpoint":
        """A view with the names `{new: present}`, and no others."""
        entries = {new: self._entries[present] for new, present in names.items()}
        return Checkpoint(entries, path=self.path, metadata=self.metadata)


def as_checkpoint(tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Any mapping of tensors as a `Checkpoint`; nothing is read or copied."""
    if isinstance(tensors, Checkpoint):
        return tensors
    return Checkpoint({name: _MappingEntry(tensors, name) for name in tensors})


def select(checkpoint: Mapping[str, Tensor], names: Iterable[str]) -> Checkpoint:
    """A lazy view of `checkpoint` in which exactly `names` are present, whatever its prefixes.

    Raises:
        InputError: names are missing or ambiguous, see `match_names`.
    """
    source = as_checkpoint(checkpoint)
    try:
        return source.renamed(match_names(names, source))
    except InputError as fault:
        raise InputError(f"{source.path}: {fault}" if source.path else str(fault)) from None


def open_checkpoint(
    path: str | Path, *, prefix: str | None = None, keys: Iterable[str] | None = None
) -> Checkpoint:
    """Open a checkpoint of any kind; its content decides, not its suffix.

    * safetensors; in shards: their index `*.index.json`, or the folder with it;
    * what torch.save writes, through the restricted reader of `lightning_merge.core.unpickle`:
      state dicts, Lightning checkpoints (their `state_dict`), whole modules;
    * a folder, as the Hub has it, with one of these.

    Args:
        path: file or folder.
        prefix: keep only the names under this prefix, and take it off: `encoder.backbone.`.
        keys: keep exactly these names, see `select`.

    Raises:
        InputError: missing, unreadable or damaged, without tensors, or several to choose from.
    """
    path = Path(path)
    if os.path.isdir(path):
        path = _checkpoint_in(path)
    prefix = f"{prefix.rstrip('.')}." if prefix else ""
    checkpoint = _open_index(path) if path.suffix == ".json" else _open_file(path, prefix)
    if prefix:
        checkpoint = _under(prefix, checkpoint)
    return checkpoint if keys is None else select(checkpoint, keys)


def _under(prefix: str, checkpoint: Checkpoint) -> Checkpoint:
    names = {name.removeprefix(prefix): name for name in checkpoint if name.startswith(prefix)}
    names.pop("", None)
    if not names:
        found = enumerate_names(list(dict.fromkeys(name.split(".")[0] for name in checkpoint)))
        raise InputError(
            f"{checkpoint.path}: no tensor's name begins with prefix '{prefix}'. "
            f"Names begin with: {found}"
        )
    return checkpoint.renamed(names)


def _checkpoint_in(folder: Path) -> Path:
    """The one checkpoint in a folder; safetensors are preferred, an index to its shards."""
    for pattern in ("*.safetensors*", "*.bin*", "*.pt", "*.pth", "*.ckpt"):
        files = sorted(file for file in folder.glob(pattern) if not file.name.startswith("."))
        files = [file for file in files if file.name.endswith(".index.json")] or [
            file for file in files if file.suffix != ".json"
        ]
        if len(files) > 1:
            names = enumerate_names([file.name for file in files])
            raise InputError(f"{folder} holds several checkpoints: {names}. Give the file's path")
        if files and re.search(r"-\d{5}-of-\d{5}\.", files[0].name):
            raise InputError(
                f"{folder} holds {files[0].name}, a shard, without the index *.index.json: copy "
                "or download the folder again"
            )
        if files:
            return files[0]
    raise InputError(
        f"{folder} holds no checkpoint (.safetensors, .bin, .pt, .pth, .ckpt or an index of "
        "shards): check the path"
    )


def _open_index(path: Path) -> Checkpoint:
    """A checkpoint in shards, as transformers writes it: {"weight_map": {name: file}}."""
    with reading(path):
        source = Source(path)
        index = parse_json(source.read(0, source.size))
        files = index["weight_map"]
        metadata = {key: str(value) for key, value in (index.get("metadata") or {}).items()}
        for file in set(files.values()):
            if PurePosixPath(file).name != file or not (path.parent / file).is_file():
                raise InputError(f"names the shard {file!r}, which is not beside it: get it, too")
    shards = {file: _open_file(path.parent / file) for file in dict.fromkeys(files.values())}
    missing = [name for name, file in files.items() if name not in shards[file]]
    if missing or not files:
        raise InputError(
            f"{path} names tensors that are not in their shards: {enumerate_names(missing)}. "
            "Copy or download the folder again"
        )
    entries = {name: shards[file]._entries[name] for name, file in files.items()}
    return Checkpoint(entries, path=path, metadata=metadata)


def _open_file(path: Path, prefix: str = "") -> Checkpoint:
    """A checkpoint in one file; of one with several parts, the one whose names have a prefix."""
    with reading(path):
        source = Source(path)
        start = source.read(0, 64)
        if start.startswith(b"version https://git-lfs"):
            raise InputError("is a pointer of git-lfs, not the file itself: run 'git lfs pull'")
        if start[8:9] == b"{" or (path.suffix == ".safetensors" and start[:2] != b"PK"):
            tensors, metadata = read_header(source)
            return Checkpoint(tensors, path=path, metadata=metadata)
        found = find_tensors(source)
    known = [any(name.startswith(prefix) for name in part) for part in (found.network, found.parts)]
    if known == [False, True]:
        return Checkpoint(found.parts, path=path)
    if found.note and not prefix:
        warn(
            f"{path}: {found.note}. A prefix takes another part: --prefix.NAME PART. of merge, or "
            "open_checkpoint(path, prefix='PART.')"
        )
    return Checkpoint(found.network, path=path)


def save_checkpoint(
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
    max_shard_size: int | None = None,
) -> Path:
    """Write tensors as one safetensors file, or in shards, that appears whole or not at all.

    Tensors keep their dtype and order (wider dtypes first, so that all are aligned); views are
    written contiguously, tied tensors in full under each name. The same input gives the same
    bytes.

    Args:
        tensors: mapping, or pairs of name and tensor.
        path: the file, or the folder of the shards; its parent is made.
        metadata: text by name; `format: pt`, which transformers asks for, is added.
        overwrite: whether an existing file may be replaced.
        max_shard_size: see `CheckpointWriter`.

    Returns:
        The path.

    Raises:
        InputError: `path` exists and must not be overwritten or cannot be written; a tensor is
            not a dense tensor, a name is given twice or is not text.
    """
    path = Path(path)
    if max_shard_size is None:
        claim(path, overwrite=overwrite).unlink()  # told before the pairs are made
    content = tensors if isinstance(tensors, Mapping) else _without_repeats(tensors, path)
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise InputError(f"{path}: '{name}' is no dense tensor: leave it out or densify it")
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in content.items()}
    with CheckpointWriter(
        path, layout, metadata=metadata, overwrite=overwrite, max_shard_size=max_shard_size
    ) as writer:
        for name, tensor in content.items():
            writer.write(name, 0, tensor)
    return path


def _without_repeats(pairs: Iterable[tuple[str, Tensor]], path: Path) -> dict[str, Tensor]:
    content: dict[str, Tensor] = {}
    for name, tensor in pairs:
        if name in content:
            raise InputError(f"{path}: the name {name!r} is taken twice")
        content[name] = tensor
    return content
