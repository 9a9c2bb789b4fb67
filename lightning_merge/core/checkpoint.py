"""Checkpoints as lazy, read-only mappings from names to tensors, and how they are written."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from lightning_merge.core.errors import InputError
from lightning_merge.core.files import atomic_write, file_hash
from lightning_merge.core.names import enumerate_names, match_names
from lightning_merge.core.unpickle import read_torch_file, reading

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

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Entry(Protocol):
    """Where one tensor of a checkpoint is to be had."""

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


@dataclass(frozen=True, slots=True, eq=False)
class _FileEntry:
    """A tensor in a safetensors file, which keeps tied tensors apart."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    identity: None = None


@dataclass(frozen=True, slots=True, eq=False)
class _MappingEntry:
    """A tensor of any mapping."""

    mapping: Mapping[str, Tensor]
    name: str

    def read(self) -> Tensor:
        return self.mapping[self.name]

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

    Names, shapes and dtypes are known at once; a tensor is read, as a memory map where the
    file allows it, each time it is asked for, and nothing is kept. Names come in the order of
    the file.

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
        entry = self._entries[name]
        if self.path is None:
            return entry.read()
        with reading(self.path):
            return entry.read()

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

    * safetensors, memory-mapped; in shards: their index `*.index.json`, or the folder with it;
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
    checkpoint = _open_index(path) if path.suffix == ".json" else _open_file(path)
    if prefix:
        checkpoint = _under(prefix.rstrip(".") + ".", checkpoint)
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
        if files:
            return files[0]
    raise InputError(
        f"{folder} holds no checkpoint (.safetensors, .bin, .pt, .pth, .ckpt or an index of "
        "shards): check the path"
    )


def _open_index(path: Path) -> Checkpoint:
    """A checkpoint in shards, as transformers writes it: {"weight_map": {name: file}}."""
    with reading(path):
        index = json.loads(path.read_text(encoding="utf-8"))
        files = index["weight_map"]
        for file in set(files.values()):
            if PurePosixPath(file).name != file or not (path.parent / file).is_file():
                raise InputError(f"names the shard '{file}', which is not beside it: get it, too")
    shards = {file: _open_file(path.parent / file) for file in dict.fromkeys(files.values())}
    missing = [name for name, file in files.items() if name not in shards[file]]
    if missing or not files:
        raise InputError(
            f"{path} names tensors that are not in their shards: {enumerate_names(missing)}. "
            "Copy or download the folder again"
        )
    metadata = {k: str(v) for k, v in (index.get("metadata") or {}).items()}
    entries = {name: shards[file]._entries[name] for name, file in files.items()}
    return Checkpoint(entries, path=path, metadata=metadata)


def _open_file(path: Path) -> Checkpoint:
    with reading(path), path.open("rb") as file:
        start = file.read(64)
        if start.startswith(b"version https://git-lfs"):
            raise InputError("is a pointer of git-lfs, not the file itself: run 'git lfs pull'")
        if start[8:9] == b"{" or (path.suffix == ".safetensors" and start[:2] != b"PK"):
            return _open_safetensors(path)
    return Checkpoint(read_torch_file(path), path=path)


def _open_safetensors(path: Path) -> Checkpoint:
    file = safe_open(path, framework="pt")
    entries = {}
    for name in file.offset_keys():
        header = file.get_slice(name)
        dtype = _DTYPES.get(header.get_dtype())
        if dtype is None:
            raise InputError(
                f"stores '{name}' as {header.get_dtype()}, which torch has no type for"
            )
        entries[name] = _FileEntry(dtype, tuple(header.get_shape()), partial(file.get_tensor, name))
    if not entries:
        raise InputError("holds no tensors: check the path")
    return Checkpoint(entries, path=path, metadata=file.metadata())


def save_checkpoint(
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
) -> Path:
    """Write tensors as one safetensors file that appears whole or not at all.

    Tensors keep their dtype and order (wider dtypes first, so that all are aligned); views are
    written contiguously, tied tensors in full under each name. The same input gives the same
    bytes.

    Args:
        tensors: mapping, or pairs of name and tensor.
        path: the file; its folder is made.
        metadata: text by name; `format: pt`, which transformers asks for, is added.
        overwrite: whether an existing file may be replaced.

    Returns:
        The path.

    Raises:
        InputError: `path` exists and must not be overwritten or cannot be written; a tensor is
            not a dense tensor, a name is given twice or is not text.
    """
    path = Path(path)
    with atomic_write(path, overwrite=overwrite) as temporary:
        content = _checked(tensors, path)
        with temporary.open("wb") as file:
            try:
                _write(content, {"format": "pt", **(metadata or {})}, file)
            except OSError as fault:
                raise InputError(f"{path} cannot be written: {fault.strerror}") from fault
    return path


def _checked(
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], path: Path
) -> dict[str, Tensor]:
    content: dict[str, Tensor] = {}
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
        if not isinstance(name, str) or name == "__metadata__" or name in content:
            raise InputError(f"{path}: the name {name!r} is taken twice, reserved or not text")
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise InputError(f"{path}: '{name}' is no dense tensor: leave it out or densify it")
        if tensor.dtype not in _DTYPE_NAMES:
            raise InputError(f"{path}: '{name}' is {tensor.dtype}, not storable: convert it")
        content[name] = tensor.detach()
    if not content:
        raise InputError(f"{path}: there are no tensors to save")
    return dict(sorted(content.items(), key=lambda item: -item[1].dtype.itemsize))


def _write(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], file: BinaryIO) -> None:
    """The safetensors format: length of header, header in JSON, then the tensors' bytes."""
    wrong = [key for key, value in metadata.items() if not isinstance(value, str)]
    if wrong:
        raise InputError(f"metadata must be text by name: convert {enumerate_names(wrong)}")
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        flat = tensor.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        file.write(flat.view(torch.uint8).numpy().data)
