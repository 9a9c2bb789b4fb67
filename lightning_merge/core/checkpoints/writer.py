"""Checkpoints written in pieces, in any order, that appear completely or not at all."""

import json
import math
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.files import PendingFile, flush, remove_leftovers
from lightning_merge.core.checkpoints.flat import BLOCK, check_fits, flat_bytes, flat_part
from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.checkpoints.safetensors_file import DTYPE_NAMES, Layout, make_header
from lightning_merge.core.checks import require_in
from lightning_merge.core.errors import InputError

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD = r"model-[0-9a-f]{8}-\d{5}-of-\d{5}"
_HIDDEN = r"\.[0-9a-f]{8}\.tmp"


@dataclass(slots=True)
class _Place:
    """Where a tensor is written, and which of its elements have been written."""

    file: PendingFile
    begin: int
    dtype: torch.dtype
    numel: int
    runs: list[tuple[int, int]] = field(default_factory=list)

    def is_complete(self) -> bool:
        """Whether every element was written, and none twice."""
        end = 0
        for start, stop in sorted(self.runs):
            if start != end:
                return False
            end = stop
        return end == self.numel


class CheckpointWriter:
    """A context that writes a checkpoint of known layout in pieces, from any thread or fork.

    On entry, the files are created at full size under hidden names, with their headers; on exit
    they are flushed to disk and renamed. Whatever happens in between, including kill -9, a
    complete checkpoint remains: the old one or the new one. An exception in the block removes
    everything written; leftovers of a killed process are removed by the next one that writes the
    same checkpoint.

    Tensors lie in the order of the layout, wider dtypes first, so that all are aligned. The same
    input gives the same bytes; shards get new names.

    Args:
        path: The file, or with `max_shard_size` the folder; missing parent folders are created.
        layout: Dtype and shape by name.
        metadata: Text by name; `format: pt`, which transformers requires, is added.
        overwrite: Whether an existing checkpoint may be replaced.
        max_shard_size: Maximum bytes of tensors per file, for a folder of shards with an index, as
            on the Hub; a larger tensor gets its own shard. None for a single file.

    Raises:
        InputError: A name, dtype, metadata entry or size cannot be stored; on entry, `path` exists
            and must not be overwritten, or the disk is full.

    Examples:
        >>> layout = {"a": (torch.float32, (2, 3))}
        >>> with CheckpointWriter("a.safetensors", layout) as writer:
        ...     writer.write("a", 4, torch.ones(2))
        ...     writer.write("a", 0, torch.zeros(4))
        >>> from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
        >>> open_checkpoint("a.safetensors")["a"]
        tensor([[0., 0., 0.],
                [0., 1., 1.]])
    """

    shared = True

    def __init__(
        self,
        path: str | Path,
        layout: Layout,
        *,
        metadata: Mapping[str, str] | None = None,
        overwrite: bool = True,
        max_shard_size: int | None = None,
    ) -> None:
        self._path = Path(path)
        self._layout = _checked(layout, self._path)
        self._metadata = dict(metadata or {})
        self._overwrite = overwrite
        self._shard_size = max_shard_size
        self._files: list[PendingFile] = []
        self._places: dict[str, _Place] = {}
        wrong = [key for key, value in self._metadata.items() if not isinstance(value, str)]
        if wrong:
            raise InputError(f"metadata values must be text: convert {enumerate_names(wrong)}")
        if max_shard_size is not None:
            require_in("[1, inf)", max_shard_size=max_shard_size)

    def __enter__(self) -> "CheckpointWriter":
        try:
            if self._shard_size is None:
                self._check_index()
                self._begin(self._path, self._layout)
            else:
                self._begin_shards(self._shard_size)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            self._close()

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Write elements start..start+n of the flattened tensor `name`; each exactly once.

        Args:
            name: The tensor.
            start: First element.
            values: N elements of any shape, dtype and device, in the order of the flattened
                tensor; they are converted to the layout's dtype.

        Raises:
            InputError: The write fails, or a value is too large for the layout's dtype.
        """
        place = self._places[name]
        stop = start + values.numel()
        if not 0 <= start <= stop <= place.numel:
            raise RuntimeError(f"'{name}' has {place.numel} elements, not {start}..{stop}")
        values = values.detach()
        for first in range(0, values.numel(), BLOCK):
            last = min(first + BLOCK, values.numel())
            given = flat_part(values, first, last)
            part = given.to(place.dtype)
            check_fits(name, given, part)
            part = part.cpu().resolve_conj().resolve_neg()
            begin = place.begin + (start + first) * place.dtype.itemsize
            place.file.write(begin, flat_bytes(part))
        if start < stop:
            place.runs.append((start, stop))

    def written(self, name: str, runs: list[tuple[int, int]]) -> None:
        """Record which elements [start, stop) of a tensor were written, by any process.

        A forked process writes through its own copy of the writer, so its parent learns of it
        only by this call.
        """
        self._places[name].runs = [run for run in runs if run[0] < run[1]]

    def _check_index(self) -> None:
        """Refuse a file that readers of its folder would ignore in favour of an older index."""
        index = self._path.with_name(f"{self._path.name}.index.json")
        if index.exists():
            raise InputError(
                f"{index} belongs to an older checkpoint and would hide {self._path}: remove it "
                "with its shards, or give another path"
            )

    def _begin(self, path: Path, layout: Layout) -> None:
        header, begins, size = make_header(layout, {"format": "pt", **self._metadata})
        file = PendingFile(path, overwrite=self._overwrite)
        self._files.append(file)
        file.reserve(size)
        file.write(0, header)
        for name, (dtype, shape) in layout.items():
            self._places[name] = _Place(file, begins[name], dtype, math.prod(shape))

    def _begin_shards(self, size: int) -> None:
        for name in (INDEX, _SINGLE):
            if not self._overwrite and (self._path / name).exists():
                raise InputError(f"{self._path / name} exists: give another folder or overwrite it")
        shards = list(_split(self._layout, size))
        token = secrets.token_hex(4)
        for number, layout in enumerate(shards, 1):
            name = f"model-{token}-{number:05d}-of-{len(shards):05d}.safetensors"
            self._begin(self._path / name, layout)

    def _commit(self) -> None:
        missing = [name for name, place in self._places.items() if not place.is_complete()]
        if missing:
            raise RuntimeError(f"not every element was written once: {enumerate_names(missing)}")
        for file in self._files:
            file.flush()
        if self._shard_size is None:
            self._files[0].replace()
            flush(self._path.parent)
            stem, suffix = re.escape(self._path.stem), re.escape(self._path.suffix)
            remove_leftovers(self._path.parent, rf"\.{stem}{_HIDDEN}{suffix}")
        else:
            self._commit_shards()

    def _commit_shards(self) -> None:
        """Move the shards into place, then the index that names them; then remove the old ones."""
        shards = list(self._files)
        index = PendingFile(self._path / INDEX)
        self._files.append(index)
        index.write(0, self._index().encode())
        index.flush()
        old = _named_by(self._path / INDEX)
        for file in shards:
            file.replace()
        flush(self._path)
        index.replace()
        flush(self._path)
        for name in old:
            with suppress(OSError, ValueError):
                (self._path / name).unlink()
        names = [file.path.name for file in shards]
        remove_leftovers(self._path, rf"{_SHARD}\.safetensors", keep=names)
        remove_leftovers(self._path, rf"\.{_SHARD}{_HIDDEN}\.safetensors")
        remove_leftovers(self._path, rf"\.model\.safetensors\.index{_HIDDEN}\.json")

    def _index(self) -> str:
        """Return the index of shards as transformers and huggingface_hub write it."""
        sizes = (place.numel * place.dtype.itemsize for place in self._places.values())
        content = {
            "metadata": {**self._metadata, "total_size": sum(sizes)},
            "weight_map": {name: place.file.path.name for name, place in self._places.items()},
        }
        return json.dumps(content, indent=2) + "\n"

    def _close(self) -> None:
        for file in self._files:
            file.close()


def _checked(layout: Layout, path: Path) -> Layout:
    """Return the layout in the order of the file."""
    for name, (dtype, _) in layout.items():
        if not isinstance(name, str) or name == "__metadata__" or not _is_text(name):
            raise InputError(
                f"{path}: the name {name!r} is reserved or not text: rename the tensor"
            )
        if dtype not in DTYPE_NAMES:
            raise InputError(
                f"{path}: '{name}' has dtype {dtype}, which safetensors cannot store: convert it"
            )
    if not layout:
        raise InputError(f"{path}: there are no tensors to save: give at least one")
    return dict(sorted(layout.items(), key=lambda item: -item[1][0].itemsize))


def _is_text(name: str) -> bool:
    """Whether a name can be encoded; half a surrogate pair cannot."""
    return name.encode("utf-8", "ignore").decode() == name


def _split(layout: Layout, size: int) -> Iterator[Layout]:
    """Yield the layout in parts of at most `size` bytes, or of a single tensor."""
    part: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    used = 0
    for name, (dtype, shape) in layout.items():
        needed = math.prod(shape) * dtype.itemsize
        if part and used + needed > size:
            yield part
            part, used = {}, 0
        part[name] = (dtype, shape)
        used += needed
    yield part


def _named_by(index: Path) -> set[str]:
    """Return the files of the checkpoint that an index in the same folder belongs to."""
    try:
        named = list(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        named = []  # missing, or not an index of a checkpoint
    files = {name for name in [*named, _SINGLE] if isinstance(name, str)}
    return {name for name in files if Path(name).name == name and name.endswith(".safetensors")}
