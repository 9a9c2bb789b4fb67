"""Tensors out of files written by torch.save, without running anything in them.

State dicts, Lightning checkpoints and pickled whole modules, in torch's zip format and in the
older one, are read by one restricted reader. It is stricter than
`torch.load(weights_only=True)`: it imports no class, so a module whose class is long gone
still gives its tensors; it honours no call but those, listed below, that describe a dense
tensor; and tensors stay in the file until they are used.
"""

import math
import zipfile
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from lightning_merge.core.errors import InputError
from lightning_merge.core.flat import flat_part
from lightning_merge.core.pickle_machine import Record, Symbol, read_pickle
from lightning_merge.core.source import Source

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MOST_STEPS = 1 << 24
_MOST_DIMENSIONS = 64  # as in torch

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

    source: Source
    dtype: torch.dtype
    size: int  # bytes
    start: int | None = None  # unknown until the legacy format's end is read


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor that lies in a file of torch.save."""

    storage: _Storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # elements

    @property
    def source(self) -> Source:
        """The file that it lies in."""
        return self.storage.source

    @property
    def identity(self) -> Hashable:
        """Equal for two names exactly when they denote the same values in the file."""
        return (self.storage.start, self.offset, self.dtype, self.shape, self.stride)

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
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


def find_tensors(source: Source) -> dict[str, StoredTensor]:
    """Where the named tensors of a file written by torch.save lie; nothing in it is executed.

    Args:
        source: a state dict, a Lightning checkpoint or a whole module, as the papers on task
            vectors published theirs.

    Returns:
        Tensors by the state dict's names: a module's parameters and persistent buffers by their
        path.

    Raises:
        InputError: it holds no tensors, or asks for any other call than those which rebuild
            tensors; without the path, see `reading`.
        Exception: of many kinds where the file is damaged; for the caller to translate.
    """
    root = _read_root(source)
    patience = _Patience(min(source.size, _MOST_STEPS) + (1 << 16))
    tensors = dict(_walk(_state(root, patience), patience))
    if "" in tensors or not tensors:
        raise InputError("holds no named tensors: save model.state_dict()")
    "".join(tensors).encode()  # half a surrogate pair is no text
    if any(tensor.storage.start is None for tensor in tensors.values()):
        raise InputError("lacks the values of a tensor: copy or download it again")
    return tensors


def find_attributes(source: Source) -> dict[str, Any]:
    """Plain values that the object in a file of torch.save has as attributes.

    Args:
        source: see `find_tensors`.

    Returns:
        Texts, numbers and truth values of a whole module, by name; nothing of a state dict.

    Raises:
        InputError: see `find_tensors`.
        Exception: likewise.
    """
    root = _read_root(source)
    state = root.state if isinstance(root, Record) and isinstance(root.state, dict) else {}
    plain = {name: value for name, value in state.items() if isinstance(value, (str, int, float))}
    return {name: value for name, value in plain.items() if isinstance(name, str)}


def _read_root(source: Source) -> Any:
    is_zip = source.read(0, 4) == _ZIP_MAGIC
    return _read_zip(source) if is_zip else _read_legacy(source)


def _read_zip(source: Source) -> Any:
    """Torch's format since 1.6: data.pkl and one uncompressed member per storage."""
    with zipfile.ZipFile(source.stream()) as archive:
        members = {member.filename: member for member in archive.infolist()}
    roots = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise InputError("is a zip archive, but not one that torch.save wrote")
    folder = roots[0].removesuffix("data.pkl")
    order = members.get(f"{folder}byteorder")
    if order and source.read(*_member_span(source, order)) != b"little":
        raise InputError("was written on a big-endian machine: save it again on another")

    def persistent(key: Any) -> _Storage:
        storage = _described_storage(key, source)
        storage.start, size = _member_span(source, members[f"{folder}data/{key[2]}"])
        if storage.size > size:
            raise ValueError("a storage is larger than its record")
        return storage

    pickled = source.read(*_member_span(source, members[roots[0]]))
    return read_pickle(BytesIO(pickled), _REBUILD, persistent)


def _member_span(source: Source, member: zipfile.ZipInfo) -> tuple[int, int]:
    """Where the bytes of an uncompressed member of a zip file begin, and how many they are."""
    begin = member.header_offset
    header = source.read(begin, 30)
    if member.compress_type != zipfile.ZIP_STORED or header[:4] != _ZIP_MAGIC:
        raise InputError("is a compressed or damaged archive: write it with torch.save")
    name = int.from_bytes(header[26:28], "little")
    extra = int.from_bytes(header[28:30], "little")
    start = begin + 30 + name + extra
    if start + member.file_size > source.size:
        raise ValueError("an archive member reaches beyond the end of the file")
    return start, member.file_size


def _read_legacy(source: Source) -> Any:
    """Torch's format before 1.6: five pickles in a row, then the storages' values."""
    stream = source.stream()
    if read_pickle(stream) != _LEGACY_MAGIC or read_pickle(stream) != _LEGACY_PROTOCOL:
        raise InputError("is a pickle, but not one that torch.save wrote")
    if read_pickle(stream).get("little_endian") is not True:
        raise InputError("was written on a big-endian machine: save it again on another")
    storages: dict[Any, _Storage] = {}

    def persistent(key: Any) -> Any:
        if key[0] == "module":  # a class with its source code
            return key[1]
        if len(key) > 5 and key[5] is not None:
            raise InputError("holds views of storages as before torch 0.4: save it again")
        return storages.setdefault(key[2], _described_storage(key, source))

    root = read_pickle(stream, _REBUILD, persistent)
    keys = read_pickle(stream)
    position = stream.tell()
    for key in keys:
        storage, start = storages[key], position + 8
        count = int.from_bytes(source.read(position, 8), "little")
        if count * storage.dtype.itemsize != storage.size or start + storage.size > source.size:
            raise ValueError("a storage reaches beyond the end of the file")
        storage.start, position = start, start + storage.size
    return root


def _described_storage(key: Any, source: Source) -> _Storage:
    """The storage of a persistent id ('storage', type, key, device, number of elements)."""
    if key[0] != "storage" or not isinstance(key[1], Symbol) or not isinstance(key[2], (str, int)):
        raise ValueError("an unknown kind of persistent id")
    dtype = _STORAGE_DTYPES[key[1].name]
    size = _natural(key[4]) * dtype.itemsize
    if size > source.size:
        raise ValueError("a storage is larger than the file")
    return _Storage(source, dtype, size)


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


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError("a size that is no natural number")
    return value


def _naturals(values: Any) -> tuple[int, ...]:
    if isinstance(values, Record) and values.args:  # TorchScript's typed lists
        values = values.args[0]
    return tuple(_natural(value) for value in values)


@dataclass(slots=True)
class _Patience:
    """How many steps and letters may be spent on a file's objects, which may hold each other.

    An honest file spells out what it holds, so that its size is enough.
    """

    left: int

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise ValueError("more objects than a checkpoint has, or one within itself")


def _state(root: Any, patience: _Patience) -> Any:
    """The part of a checkpoint that holds the model: `state_dict`, or the only part with tensors.

    Where several parts hold named tensors (model and EMA, teacher and student), all stay, and
    their names begin with the part's.
    """
    for _ in range(8):
        if not isinstance(root, dict):
            break
        parts = {key: part for key, part in root.items() if next(_walk(part, patience), None)}
        if "state_dict" in parts:
            root = root["state_dict"]
        elif len(parts) == 1 and not any(isinstance(v, StoredTensor) for v in parts.values()):
            (root,) = parts.values()
        else:
            break
    return root


def _walk(root: Any, patience: _Patience) -> Iterator[tuple[str, StoredTensor]]:
    """Names and tensors in a state dict or module, in the order of `state_dict()`."""
    if isinstance(root, StoredTensor):
        yield "", root
    levels = [("", _children(root, patience))]
    while levels:
        prefix, children = levels[-1]
        key, child = next(children, (None, None))
        patience.spend(1)
        if key is None:
            levels.pop()
        elif isinstance(key, str) and isinstance(child, (StoredTensor, dict, Record)):
            patience.spend(len(prefix) + len(key))
            if isinstance(child, StoredTensor):
                yield prefix + key, child
            else:
                levels.append((f"{prefix}{key}.", _children(child, patience)))


def _children(value: Any, patience: _Patience) -> Iterator[tuple[Any, Any]]:
    """What a state dict would name in a container: parameters, then buffers, then modules."""
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, Record):
        state = value.state if isinstance(value.state, dict) else {}
        if "_parameters" in state:
            passing = _members(state.get("_non_persistent_buffers_set"), patience)
            buffers = _items(state.get("_buffers"), patience)
            yield from _items(state["_parameters"], patience)
            yield from ((k, v) for k, v in buffers if k not in passing)
            yield from _items(state.get("_modules"), patience)
        elif isinstance(value.kind, Symbol) and value.kind.module.startswith("__torch__"):
            yield from state.items()  # TorchScript keeps parameters as attributes
        else:
            yield from _items(value, patience)


def _items(value: Any, patience: _Patience) -> Iterator[tuple[Any, Any]]:
    """Pairs of a dict, or of a record of one (an OrderedDict made from pairs, a subclass)."""
    if isinstance(value, Record):
        pairs = value.args[0] if value.args and isinstance(value.args[0], list) else []
        patience.spend(len(pairs))
        yield from ((k, v) for k, v in (pair for pair in pairs if isinstance(pair, (list, tuple))))
        yield from value.entries.items()
    elif isinstance(value, dict):
        yield from value.items()


def _members(value: Any, patience: _Patience) -> set[str]:
    """Members of a set of names, which older pickles write as a call of `set`."""
    if isinstance(value, Record):
        value = value.args[0] if value.args else []
    members = value if isinstance(value, list) else []
    patience.spend(len(members))
    return {member for member in members if isinstance(member, str)}
