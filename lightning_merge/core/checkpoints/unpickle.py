"""Tensors from files written by torch.save, without running anything in them.

State dicts, Lightning checkpoints and pickled modules, in torch's zip format and in the legacy
one, are read by one restricted reader. It is stricter than `torch.load(weights_only=True)`: it
imports no class, so a module whose class no longer exists still yields its tensors; it honours
only the calls, listed below, that describe a dense tensor; and tensors stay in the file until they
are used, and are then read by runs of entries. `torch.load` needs the whole file in memory, or a
map, which kills the process with SIGBUS if the file is truncated.
"""

import re
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any

import torch

from lightning_merge.core.checkpoints.foreign import describe_archive
from lightning_merge.core.checkpoints.network_state import FileContent, find_network
from lightning_merge.core.checkpoints.pickle_machine import Record, Symbol, read_pickle
from lightning_merge.core.checkpoints.safetensors_file import is_safetensors
from lightning_merge.core.checkpoints.source import SourceFile
from lightning_merge.core.checkpoints.stored_tensor import Storage, StoredTensor, natural, placed
from lightning_merge.core.errors import InputError

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_BIG_ENDIAN = "was written on a big-endian machine: save it again on a little-endian one"

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


def find_tensors(source: SourceFile) -> FileContent:
    """Locate the named tensors of a file written by torch.save, executing nothing in it.

    Args:
        source: A state dict, a Lightning checkpoint or a whole module, such as those published with
            the papers on task vectors.

    Returns:
        Tensors by the state dict's names: a module's parameters and persistent buffers by their
        path; and the other content, see `find_network`.

    Raises:
        InputError: It holds no tensors, or asks for a call that does not rebuild a tensor;
            `reading` adds the path to the message.
        Exception: Of many kinds if the file is damaged; the caller translates it.

    Examples:
        >>> torch.save({"state_dict": {"weight": torch.ones(2)}, "epoch": 3}, "run.ckpt")
        >>> find_tensors(SourceFile("run.ckpt")).network["weight"].read()
        tensor([1., 1.])
    """
    content = find_network(_read_root(source), source.size)
    "".join([*content.network, *content.parts, content.note]).encode()  # refuses lone surrogates
    if any(tensor.storage.start is None for tensor in content.parts.values()):
        raise InputError("lacks the values of a tensor: copy or download it again")
    return content


def find_attributes(source: SourceFile) -> dict[str, Any]:
    """Return the plain attributes of the object in a file of torch.save.

    Args:
        source: See `find_tensors`; safetensors files have none.

    Returns:
        Texts, numbers and booleans of a whole module, by name; empty for a state dict.

    Raises:
        InputError: See `find_tensors`.
        Exception: See `find_tensors`.

    Examples:
        >>> torch.save(torch.nn.Linear(2, 3), "layer.pt")
        >>> find_attributes(SourceFile("layer.pt"))["out_features"]
        3
    """
    root = _read_objects(source)
    state = root.state if isinstance(root, Record) and isinstance(root.state, dict) else {}
    plain = {name: value for name, value in state.items() if isinstance(value, (str, int, float))}
    return {name: value for name, value in plain.items() if isinstance(name, str)}


def find_classes(source: SourceFile) -> set[str]:
    """Return the class names of all objects in a file of torch.save, without their packages.

    Args:
        source: See `find_tensors`; state dicts and safetensors files have none.

    Raises:
        InputError: See `find_tensors`.
        Exception: See `find_tensors`.

    Examples:
        >>> torch.save(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.GELU()), "block.pt")
        >>> sorted({"GELU", "Linear", "ReLU"} & find_classes(SourceFile("block.pt")))
        ['GELU', 'Linear']
    """
    waiting, names, seen = [_read_objects(source)], set(), set()
    while waiting:
        value = waiting.pop()
        if not isinstance(value, (Record, dict, list, tuple)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Record):
            names.update([value.kind.name] if isinstance(value.kind, Symbol) else [])
            waiting += (value.args, value.state, value.items, value.entries)
        else:
            waiting += value.values() if isinstance(value, dict) else value
    return names


def _read_objects(source: SourceFile) -> Any:
    """Return the root of a file of torch.save; None for safetensors and JSON."""
    is_index = source.read(0, 1) == b"{"
    return None if is_index or is_safetensors(source.read(0, 9)) else _read_root(source)


def _read_root(source: SourceFile) -> Any:
    is_zip = source.read(0, 4) == _ZIP_MAGIC
    return _read_zip(source) if is_zip else _read_legacy(source)


def _read_zip(source: SourceFile) -> Any:
    """Read torch's format since 1.6: data.pkl and one uncompressed member per storage."""
    with zipfile.ZipFile(source.stream()) as archive:
        members = {member.filename: member for member in archive.infolist()}
    roots = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise InputError(describe_archive(members))
    folder = roots[0].removesuffix("data.pkl")
    order = members.get(f"{folder}byteorder")
    if order and source.read(*_member_span(source, order)) != b"little":
        raise InputError(_BIG_ENDIAN)

    def persistent(key: Any) -> Storage:
        storage = _described_storage(key, source)
        storage.start, size = _member_span(source, members[f"{folder}data/{key[2]}"])
        if storage.size > size:
            raise ValueError("a storage is larger than its record")
        return storage

    pickled = source.read(*_member_span(source, members[roots[0]]))
    return read_pickle(BytesIO(pickled), _REBUILD, persistent)


def _member_span(source: SourceFile, member: zipfile.ZipInfo) -> tuple[int, int]:
    """Return the start and the number of bytes of an uncompressed member of a zip file."""
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


def _read_legacy(source: SourceFile) -> Any:
    """Read torch's format before 1.6: five pickles in a row, then the values of the storages."""
    stream = source.stream()
    if read_pickle(stream) != _LEGACY_MAGIC or read_pickle(stream) != _LEGACY_PROTOCOL:
        raise InputError(
            "is a pickle, but not one that torch.save wrote: load it where it was made and save "
            "its state dict with torch.save"
        )
    if read_pickle(stream).get("little_endian") is not True:
        raise InputError(_BIG_ENDIAN)
    storages: dict[Any, Storage] = {}

    def persistent(key: Any) -> Any:
        if key[0] == "module":  # a class with its source code
            return key[1]
        if len(key) > 5 and key[5] is not None:
            raise InputError("holds views of storages, as before torch 0.4: save it again")
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


def _described_storage(key: Any, source: SourceFile) -> Storage:
    """Return the storage of a persistent id ('storage', type, key, device, number of elements)."""
    if key[0] != "storage" or not isinstance(key[1], Symbol) or not isinstance(key[2], (str, int)):
        raise ValueError("an unknown kind of persistent id")
    kind = key[1].name
    if kind not in _STORAGE_DTYPES:
        quantised = re.fullmatch(r"QU?Int\d+(x\d)?Storage", kind)
        unknown = f"stores numbers as {kind}, an unknown type: save it again as float32"
        raise InputError(_QUANTISED if quantised else unknown)
    dtype = _STORAGE_DTYPES[kind]
    size = natural(key[4]) * dtype.itemsize
    if size > source.size:
        raise ValueError("a storage is larger than the file")
    return Storage(source, dtype, size)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    return placed(storage, storage.dtype, offset, shape, stride)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> StoredTensor:
    kind = vars(torch).get(dtype.name) if dtype.module == "torch" else None
    if not isinstance(kind, torch.dtype):
        raise ValueError("an unknown dtype")
    return placed(storage, kind, offset, shape, stride)


def _rebuild_parameter(data: Any, *_: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise ValueError("a parameter without a tensor")
    return data


def _refusing(message: str) -> Callable[..., StoredTensor]:
    def refuse(*_: Any) -> StoredTensor:
        raise InputError(message)

    return refuse


_QUANTISED = "holds quantised tensors: call dequantize() on each, or give the float checkpoint"
_XLA = "holds XLA tensors: save them again after .cpu()"
_REFUSED = {
    "torch.serialization._get_layout": "holds a sparse tensor: save it again after .to_dense()",
    "torch._utils._rebuild_qtensor": _QUANTISED,
    "torch._utils._rebuild_nested_tensor": "holds a nested tensor: save its parts by name",
    "torch._utils._rebuild_meta_tensor_no_storage": "holds a tensor without values (device 'meta')"
    ": save the network after it was loaded",
    "torch._utils._rebuild_device_tensor_from_numpy": _XLA,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _XLA,
    "torch._utils._rebuild_wrapper_subclass": "holds sharded or quantised tensors of a class of "
    "their own: save plain ones, by full_tensor() or dequantize()",
}
_REBUILD: dict[str, Callable[..., StoredTensor]] = {
    **{name: _refusing(message) for name, message in _REFUSED.items()},
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}
