"""The safetensors format: length of the header, header in JSON, then the tensors' bytes.

https://huggingface.co/docs/safetensors: tensors fill the rest of the file without gaps or
overlap, in little-endian byte order.

The library of that name maps the file into memory. Here any run of a tensor's entries is read
into memory that the caller has, and a file cut short is an error, not the SIGBUS that kills a
process with a map.
"""

import json
import math
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
DTYPES |= {  # where torch has them
    name: getattr(torch, kind)
    for name, kind in (("F8_E8M0", "float8_e8m0fnu"), ("F4", "float4_e2m1fn_x2"))
    if hasattr(torch, kind)
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_NAMED = re.compile("[A-Z][A-Z0-9_]{1,15}")  # types of which torch may have none
_PAIRS = DTYPES.get("F4")  # two numbers in a byte, which is what torch counts
_LONGEST_HEADER = 100_000_000  # bytes, as in the library of the format's authors
_MOST_DIMENSIONS = 64  # as in torch

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def is_safetensors(start: bytes) -> bool:
    """Whether a file that starts so is of this format."""
    return start[8:9] == b"{"


@dataclass(frozen=True, slots=True, eq=False)
class FileTensor:
    """A tensor that lies in a file as one run of bytes from byte `begin` on."""

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
        """None: the format keeps tied tensors apart."""
        return None

    def read(self) -> Tensor:
        """Return the tensor, in memory of its own."""
        out = torch.empty(self.shape, dtype=self.dtype)
        self.read_into(0, out.view(-1))
        return out

    def read_into(self, start: int, out: Tensor) -> None:
        """Fill `out` ([n]) with elements start..start+n."""
        self.source.fill(out, self.begin + start * self.dtype.itemsize, self.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class ForeignTensor:
    """A tensor of a type that torch does not have; only that it is there can be known."""

    source: SourceFile
    name: str
    kind: str
    begin: int
    size: int
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """None that torch has."""
        raise InputError(
            f"{self.source.path} stores '{self.name}' as {self.kind}, for which torch "
            f"{torch.__version__} has no type: leave it out of an expert by --ignore, or take a "
            "torch that has it"
        )

    @property
    def identity(self) -> Hashable:
        """None: see `FileTensor`."""
        return None

    def read(self) -> Tensor:
        """Nothing: see `dtype`."""
        return torch.empty(self.shape, dtype=self.dtype)

    def read_into(self, start: int, out: Tensor) -> None:
        """Nothing: see `dtype`."""
        out.copy_(self.read())


def read_header(source: SourceFile) -> tuple[dict[str, FileTensor | ForeignTensor], dict[str, str]]:
    """Tensors by name, in the order of the file, and the metadata of a safetensors file.

    Every tensor is known to lie within the file, so that none claims more memory than that.

    Raises:
        InputError: There are no tensors.
        Exception: Of many kinds where the file is damaged; for the caller to translate.
    """
    length = int.from_bytes(source.read(0, 8), "little")
    if not 2 <= length <= min(source.size - 8, _LONGEST_HEADER):
        raise ValueError("the header is longer than the file or than any header")
    header = parse_json(source.read(8, length))
    metadata = header.pop("__metadata__", None) or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata that is no text")
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
    """JSON in which every name is given once and every text can be encoded.

    Raises:
        ValueError: It is not so; half a surrogate pair, for one, is no text.
        RecursionError: Lists within lists without end.
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
) -> FileTensor | ForeignTensor:
    """Return the tensor that the header describes by dtype, shape and offsets from `origin` on."""
    kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if any(type(size) is not int or size < 0 for size in (*shape, begin, end)):
        raise ValueError("a size that is no natural number")
    if len(shape) > _MOST_DIMENSIONS or math.prod(size or 1 for size in shape) >= 2**62:
        raise ValueError("a tensor of impossible shape")
    if kind not in DTYPES and _NAMED.fullmatch(kind) and begin <= end:
        return ForeignTensor(source, name, kind, origin + begin, end - begin, shape)
    dtype = DTYPES[kind]
    if dtype is _PAIRS:
        if not shape or shape[-1] % 2:
            raise ValueError("half a byte")
        shape = (*shape[:-1], shape[-1] // 2)
    tensor = FileTensor(source, origin + begin, dtype, shape)
    if end - begin != tensor.size:
        raise ValueError("a tensor whose shape does not fit its bytes")
    return tensor


def make_header(layout: Layout, metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int], int]:
    """Return the header for tensors that follow it in the order of `layout`, padded to 8 bytes.

    Returns:
        The bytes that the file begins with, where the bytes of each tensor begin, and the size
        of the file.
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
