"""The safetensors format: header length, JSON header, then the bytes of the tensors.

https://huggingface.co/docs/safetensors: tensors fill the rest of the file without gaps or
overlap, in little-endian byte order.

The safetensors library maps the file into memory. This module reads any run of a tensor's entries
into memory of the caller instead, so a truncated file is an error rather than a SIGBUS, which
kills a process that uses a map.
"""

import json
import math
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.lazy import Entry
from lightning_merge.core.checkpoints.source import SourceFile
from lightning_merge.core.errors import InputError

DTYPES = {
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
DTYPES |= {  # if torch has them
    name: getattr(torch, kind)
    for name, kind in (("F8_E8M0", "float8_e8m0fnu"), ("F4", "float4_e2m1fn_x2"))
    if hasattr(torch, kind)
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_NAMED = re.compile("[A-Z][A-Z0-9_]{1,15}")  # types that torch may lack
_PAIRS = DTYPES.get("F4")  # two numbers per byte; torch counts the bytes
_LONGEST_HEADER = 100_000_000  # bytes, as in the safetensors library
_MOST_DIMENSIONS = 64  # as in torch

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def is_safetensors(start: bytes) -> bool:
    """Whether the first nine bytes of a file are those of a safetensors file.

    Examples:
        >>> header, *_ = make_header({"w": (torch.float32, (2, 3))}, {})
        >>> is_safetensors(header)
        True
    """
    return start[8:9] == b"{"


@dataclass(frozen=True, slots=True, eq=False)
class _FileTensor:
    """A tensor stored as one run of bytes in a file, from byte `begin` on."""

    source: SourceFile
    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def identity(self) -> Hashable:
        """None: the format does not record ties."""
        return None

    def read(self) -> Tensor:
        """Return the tensor, in its own memory."""
        out = torch.empty(self.shape, dtype=self.dtype)
        self.read_into(0, out.view(-1))
        return out

    def read_into(self, start: int, out: Tensor) -> None:
        """Fill `out` ([n]) with elements start..start+n."""
        self.source.fill(out, self.begin + start * self.dtype.itemsize, self.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class _ForeignTensor:
    """A tensor of a type that torch does not have; only its existence is known."""

    source: SourceFile
    name: str
    kind: str
    begin: int
    size: int
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Unavailable: torch has no such type."""
        raise InputError(
            f"{self.source.path} stores '{self.name}' as {self.kind}, for which torch "
            f"{torch.__version__} has no type: exclude it from an expert with --ignore, or use a "
            "torch version that has it"
        )

    @property
    def identity(self) -> Hashable:
        """None: see `_FileTensor`."""
        return None

    def read(self) -> Tensor:
        """Raise InputError: see `dtype`."""
        return torch.empty(self.shape, dtype=self.dtype)

    def read_into(self, start: int, out: Tensor) -> None:
        """Raise InputError: see `dtype`."""
        out.copy_(self.read())


def read_header(source: SourceFile) -> tuple[Mapping[str, Entry], dict[str, str]]:
    """Return the tensors by name, in the order of the file, and the metadata of a safetensors file.

    Every tensor is checked to lie within the file, so none can claim more memory than that.

    Args:
        source: The file.

    Raises:
        InputError: There are no tensors.
        Exception: Of many kinds if the file is damaged; the caller translates it.

    Examples:
        >>> from safetensors.torch import save_file
        >>> save_file({"w": torch.ones(2, 3)}, "w.safetensors", metadata={"note": "ones"})
        >>> tensors, metadata = read_header(SourceFile("w.safetensors"))
        >>> tensors["w"].shape, metadata
        ((2, 3), {'note': 'ones'})
    """
    length = int.from_bytes(source.read(0, 8), "little")
    if not 2 <= length <= min(source.size - 8, _LONGEST_HEADER):
        raise ValueError("the header is longer than the file or than any header")
    header = parse_json(source.read(8, length))
    metadata = header.pop("__metadata__", None) or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata that is not text")
    tensors = {name: _described(source, 8 + length, name, header[name]) for name in header}
    if not tensors:
        raise InputError("holds no tensors: check the path")
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].size)))
    end = 8 + length
    for tensor in tensors.values():
        if tensor.begin != end:
            raise ValueError("tensors with gaps between them, or that overlap")
        end += tensor.size
    if end != source.size:
        raise ValueError("tensors that do not end where the file ends")
    return tensors, metadata


def parse_json(content: bytes) -> Any:
    """Parse JSON in which every name is unique and every text can be encoded.

    Args:
        content: UTF-8.

    Raises:
        ValueError: It is not such JSON; half a surrogate pair, for one, cannot be encoded.
        RecursionError: Lists are nested too deeply.

    Examples:
        >>> parse_json(b'{"w": 1, "w": 2}')
        Traceback (most recent call last):
        ValueError: a name that is given twice
    """
    return json.loads(content.decode(), object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name that is given twice")
    "".join(part for pair in pairs for part in pair if isinstance(part, str)).encode()
    return content


def _described(
    source: SourceFile, origin: int, name: str, entry: dict[str, Any]
) -> _FileTensor | _ForeignTensor:
    """Return the tensor that the header describes by dtype, shape and offsets from `origin`."""
    kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if any(type(size) is not int or size < 0 for size in (*shape, begin, end)):
        raise ValueError("a size that is not a natural number")
    if len(shape) > _MOST_DIMENSIONS or math.prod(size or 1 for size in shape) >= 2**62:
        raise ValueError("a tensor of impossible shape")
    if kind not in DTYPES and _NAMED.fullmatch(kind) and begin <= end:
        return _ForeignTensor(source, name, kind, origin + begin, end - begin, shape)
    dtype = DTYPES[kind]
    if dtype is _PAIRS:
        if not shape or shape[-1] % 2:
            raise ValueError("half a byte")
        shape = (*shape[:-1], shape[-1] // 2)
    tensor = _FileTensor(source, origin + begin, dtype, shape)
    if end - begin != tensor.size:
        raise ValueError("a tensor whose shape does not fit its bytes")
    return tensor


def make_header(layout: Layout, metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int], int]:
    """Return the header for tensors that follow it in the order of `layout`, padded to 8 bytes.

    Args:
        layout: Dtype and shape by name.
        metadata: Text by name.

    Returns:
        The first bytes of the file, the position in the file of each tensor's bytes, and the size
        of the file.

    Examples:
        >>> start, begins, size = make_header({"w": (torch.float32, (2, 3))}, {})
        >>> begins["w"] == len(start), size - len(start)
        (True, 24)
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    begins, end = {}, 0
    for name, (dtype, shape) in layout.items():
        begins[name], end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": [*shape[:-1], 2 * shape[-1]] if dtype is _PAIRS else list(shape),
            "data_offsets": [begins[name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    return start, {name: len(start) + at for name, at in begins.items()}, len(start) + end
