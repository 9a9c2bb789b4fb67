"""Tensors out of files written by torch.save, without running anything in them.

State dicts, Lightning checkpoints and pickled whole modules, in torch's zip format and in the
older one, are read by one restricted reader. It is stricter than
`torch.load(weights_only=True)`: it imports no class, so a module whose class is long gone
still gives its tensors; it honours no call but those, listed below, that describe a dense
tensor; and tensors stay in the memory-mapped file until they are used.
"""

import math
import mmap
import zipfile
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_merge.core.errors import InputError
from lightning_merge.core.pickle_machine import Record, Symbol, read_pickle

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MOST_OBJECTS = 1_000_000  # visited at most: objects may contain each other
_LONGEST_NAME = 1024

_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


@dataclass(slots=True, eq=False)
class _Storage:
    """A run of bytes in the file: where torch keeps the values of one or more tensors."""

    buffer: mmap.mmap
    dtype: torch.dtype
    size: int  # bytes
    start: int | None = None  # unknown until the legacy format's end is read


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor that lies in a memory-mapped file of torch.save."""

    storage: _Storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # elements

    @property
    def identity(self) -> Hashable:
        """Equal for two names exactly when they denote the same values in the file."""
        return (self.storage.start, self.offset, self.dtype, self.shape, self.stride)

    def read(self) -> Tensor:
        """The tensor, as a private view of the file: writing to it never reaches the file."""
        if self.storage.start is None:
            raise InputError("lacks the values of a tensor: copy or download it again")
        if math.prod(self.shape) == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        begin = self.storage.start + self.offset * self.dtype.itemsize
        count = _extent(self.shape, self.stride)
        buffer: Any = self.storage.buffer
        if begin % self.dtype.itemsize:  # the legacy format aligns nothing
            buffer, begin = bytearray(buffer[begin : begin + count * self.dtype.itemsize]), 0
        flat = torch.frombuffer(buffer, dtype=self.dtype, count=count, offset=begin)
        return flat.as_strided(self.shape, self.stride)


def load_published_pickle(path: str | Path) -> dict[str, Tensor]:
    """All named tensors of a file written by torch.save; nothing in it is executed.

    Args:
        path: a state dict, a Lightning checkpoint or a whole module, as the papers on task
            vectors published theirs.

    Returns:
        Name -> tensor in its stored dtype, mapped from the file. Names are the state dict's: a
        module's parameters and persistent buffers by their path.

    Raises:
        InputError: the file is missing, damaged, holds no tensors, or asks for any other call
            than those which rebuild tensors.
    """
    return {name: tensor.read() for name, tensor in read_torch_file(path).items()}


def read_torch_file(path: str | Path) -> dict[str, StoredTensor]:
    """Where the named tensors of a torch file lie; see `load_published_pickle`."""
    path = Path(path)
    with reading(path):
        buffer = _map_file(path)
        is_zip = buffer[:4] == _ZIP_MAGIC
        root = _read_zip(path, buffer) if is_zip else _read_legacy(buffer)
        tensors = dict(_walk(_state(root)))
        if "" in tensors or not tensors:
            raise InputError("holds no named tensors: save model.state_dict()")
        return tensors


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while `path` is read into one InputError that names it."""
    try:
        yield
    except FileNotFoundError as fault:
        raise InputError(f"{path} does not exist: check the path") from fault
    except InputError as fault:
        raise InputError(f"{path} {fault}") from fault
    except OSError as fault:
        raise InputError(f"{path} cannot be read: {fault.strerror or fault}") from fault
    except Exception as fault:  # a damaged file can break any step of reading it
        raise InputError(
            f"{path} is truncated or damaged, or no checkpoint: copy or download it again "
            f"({type(fault).__name__}: {str(fault)[:200]})"
        ) from fault


def _map_file(path: Path) -> mmap.mmap:
    """Map a file into memory, privately: what is written to the map stays in memory."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            raise InputError("is empty: copy or download it again")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _read_zip(path: Path, buffer: mmap.mmap) -> Any:
    """Torch's format since 1.6: data.pkl and one uncompressed member per storage."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
    roots = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise InputError("is a zip archive, but not one that torch.save wrote")
    folder = roots[0].removesuffix("data.pkl")
    order = members.get(f"{folder}byteorder")
    if order and buffer[_member_span(buffer, order)] != b"little":
        raise InputError("was written on a big-endian machine: save it again on another")

    def persistent(key: Any) -> _Storage:
        storage = _described_storage(key, buffer)
        span = _member_span(buffer, members[f"{folder}data/{key[2]}"])
        if storage.size > span.stop - span.start:
            raise ValueError("a storage is larger than its record")
        storage.start = span.start
        return storage

    pickled = buffer[_member_span(buffer, members[roots[0]])]
    return read_pickle(BytesIO(pickled), _REBUILD, persistent)


def _member_span(buffer: mmap.mmap, member: zipfile.ZipInfo) -> slice:
    """Where the bytes of an uncompressed member of a zip file lie."""
    header = member.header_offset
    if member.compress_type != zipfile.ZIP_STORED or buffer[header : header + 4] != _ZIP_MAGIC:
        raise InputError("is a compressed or damaged archive: write it with torch.save")
    name = int.from_bytes(buffer[header + 26 : header + 28], "little")
    extra = int.from_bytes(buffer[header + 28 : header + 30], "little")
    start = header + 30 + name + extra
    if start + member.file_size > len(buffer):
        raise ValueError("an archive member reaches beyond the end of the file")
    return slice(start, start + member.file_size)


def _read_legacy(buffer: mmap.mmap) -> Any:
    """Torch's format before 1.6: five pickles in a row, then the storages' values."""
    if read_pickle(buffer) != _LEGACY_MAGIC or read_pickle(buffer) != _LEGACY_PROTOCOL:
        raise InputError("is a pickle, but not one that torch.save wrote")
    if read_pickle(buffer).get("little_endian") is not True:
        raise InputError("was written on a big-endian machine: save it again on another")
    storages: dict[Any, _Storage] = {}

    def persistent(key: Any) -> Any:
        if key[0] == "module":  # a class with its source code
            return key[1]
        if len(key) > 5 and key[5] is not None:
            raise InputError("holds views of storages as before torch 0.4: save it again")
        return storages.setdefault(key[2], _described_storage(key, buffer))

    root = read_pickle(buffer, _REBUILD, persistent)
    keys = read_pickle(buffer)
    position = buffer.tell()
    for key in keys:
        storage, start = storages[key], position + 8
        count = int.from_bytes(buffer[position:start], "little")
        if count * storage.dtype.itemsize != storage.size or start + storage.size > len(buffer):
            raise ValueError("a storage reaches beyond the end of the file")
        storage.start, position = start, start + storage.size
    return root


def _described_storage(key: Any, buffer: mmap.mmap) -> _Storage:
    """The storage of a persistent id ('storage', type, key, device, number of elements)."""
    if key[0] != "storage" or not isinstance(key[1], Symbol) or not isinstance(key[2], (str, int)):
        raise ValueError("an unknown kind of persistent id")
    dtype = _STORAGE_DTYPES[key[1].name]
    size = _natural(key[4]) * dtype.itemsize
    if size > len(buffer):
        raise ValueError("a storage is larger than the file")
    return _Storage(buffer, dtype, size)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    return _stored(storage, storage.dtype, offset, shape, stride)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> StoredTensor:
    kind = vars(torch).get(dtype.name) if dtype.module == "torch" else None
    if not isinstance(kind, torch.dtype):
        raise ValueError("an unknown dtype")
    return _stored(storage, kind, offset, shape, stride)


def _rebuild_parameter(data: Any, *_: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise ValueError("a parameter without a tensor")
    return data


_REBUILD: dict[str, Callable[..., StoredTensor]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}


def _stored(
    storage: _Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any
) -> StoredTensor:
    """A tensor whose every element is known to lie within its storage."""
    offset, shape, stride = _natural(offset), _naturals(shape), _naturals(stride)
    if len(shape) != len(stride) or math.prod(size or 1 for size in shape) >= 2**62:
        raise ValueError("a tensor of impossible shape")
    numel = math.prod(shape)
    end = (offset + _extent(shape, stride)) * dtype.itemsize if numel else 0
    if end > storage.size:
        raise ValueError("a tensor reaches beyond its storage")
    if numel * dtype.itemsize > storage.size:
        raise InputError("holds an expanded tensor: save it again after .contiguous()")
    return StoredTensor(storage, dtype, shape, stride, offset)


def _extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first to the last one of a tensor that is not empty."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError("a size that is no natural number")
    return value


def _naturals(values: Any) -> tuple[int, ...]:
    if isinstance(values, Record) and values.args:  # TorchScript's typed lists
        values = values.args[0]
    return tuple(_natural(value) for value in values)


def _state(root: Any) -> Any:
    """The part of a checkpoint that holds the model: `state_dict`, or the only part with tensors.

    Where several parts hold named tensors (model and EMA, teacher and student), all stay, and
    their names begin with the part's.
    """
    for _ in range(8):
        if not isinstance(root, dict):
            break
        parts = {key: part for key, part in root.items() if next(_walk(part), None)}
        if "state_dict" in parts:
            root = root["state_dict"]
        elif len(parts) == 1 and not any(isinstance(v, StoredTensor) for v in parts.values()):
            (root,) = parts.values()
        else:
            break
    return root


def _walk(root: Any) -> Iterator[tuple[str, StoredTensor]]:
    """Names and tensors in a state dict or module, in the order of `state_dict()`."""
    if isinstance(root, StoredTensor):
        yield "", root
    levels = [("", _children(root))]
    for _ in range(_MOST_OBJECTS):
        if not levels:
            return
        prefix, children = levels[-1]
        key, child = next(children, (None, None))
        if key is None:
            levels.pop()
        elif isinstance(key, str):
            if len(prefix) + len(key) > _LONGEST_NAME:
                break
            if isinstance(child, StoredTensor):
                yield prefix + key, child
            elif isinstance(child, (dict, Record)):
                levels.append((f"{prefix}{key}.", _children(child)))
    raise ValueError("more objects than a checkpoint has, or one within itself")


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    """What a state dict would name in a container: parameters, then buffers, then modules."""
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, Record):
        state = value.state if isinstance(value.state, dict) else {}
        if "_parameters" in state:
            passing = _members(state.get("_non_persistent_buffers_set"))
            yield from _items(state["_parameters"])
            yield from ((k, v) for k, v in _items(state.get("_buffers")) if k not in passing)
            yield from _items(state.get("_modules"))
        elif isinstance(value.kind, Symbol) and value.kind.module.startswith("__torch__"):
            yield from state.items()  # TorchScript keeps parameters as attributes
        else:
            yield from _items(value)


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    """Pairs of a dict, or of a record of one (an OrderedDict made from pairs, a subclass)."""
    if isinstance(value, Record):
        pairs = value.args[0] if value.args and isinstance(value.args[0], list) else []
        yield from ((k, v) for k, v in (pair for pair in pairs if isinstance(pair, (list, tuple))))
        yield from value.entries.items()
    elif isinstance(value, dict):
        yield from value.items()


def _members(value: Any) -> list[Any]:
    """Members of a set, which older pickles write as a call of `set`."""
    if isinstance(value, Record):
        value = value.args[0] if value.args else []
    return value if isinstance(value, list) else []
