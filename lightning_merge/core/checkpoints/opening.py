"""Locating the checkpoint that a path means, and opening it by the kind of its file."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.foreign import START, describe, describe_folder
from lightning_merge.core.checkpoints.lazy import Checkpoint
from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.checkpoints.safetensors_file import (
    is_safetensors,
    parse_json,
    read_header,
)
from lightning_merge.core.checkpoints.source import SourceFile, broken_link, reading
from lightning_merge.core.checkpoints.unpickle import find_tensors
from lightning_merge.core.errors import InputError, warn

_PATTERNS = ("*.safetensors*", "*.bin*", "*.pt", "*.pth", "*.ckpt", "*.tar", "*.pkl")
_TRAINING = re.compile(r"(training_args|optimizer|scheduler|scaler|(rng|random)_states?.*)\.\w+")
"""Files that trainers write beside a checkpoint in order to resume."""


def checkpoint_in(folder: Path) -> Path:
    """Return the only checkpoint in a folder, preferring safetensors, and an index to its shards.

    Args:
        folder: A folder, or a repository in the Hub's cache.

    Raises:
        InputError: It holds no checkpoint, or several.

    Examples:
        >>> Path("expert").mkdir()
        >>> for name in ("config.json", "model.safetensors", "optimizer.pt"):
        ...     Path("expert", name).touch()
        >>> checkpoint_in(Path("expert")).name
        'model.safetensors'
    """
    folder = hub.snapshot(folder)
    for pattern in _PATTERNS:
        files = sorted(file for file in folder.glob(pattern) if not file.name.startswith("."))
        files = [file for file in files if not _TRAINING.fullmatch(file.name)]
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
    raise InputError(_nothing_in(folder))


def _nothing_in(folder: Path) -> str:
    if description := describe_folder(folder):
        return description
    inner = [f.name for f in sorted(folder.iterdir()) if f.is_dir() and _has_checkpoint(f)]
    if inner:
        return f"{folder} holds checkpoints in {enumerate_names(inner, 5)}: give one of these"
    return (
        f"{folder} holds no checkpoint (.safetensors, .bin, .pt, .pth, .ckpt, .pth.tar or an index "
        "of shards): check the path"
    )


def _has_checkpoint(folder: Path) -> bool:
    return any(True for pattern in _PATTERNS for _ in folder.glob(pattern))


def open_index(path: Path) -> Checkpoint:
    """Open a checkpoint in shards, whose index has the form {"weight_map": {name: file}}.

    The shards lie in the folder of the index, or in folders below it.

    Args:
        path: The index, as transformers writes it.

    Raises:
        InputError: The file is not an index, or shards are missing.

    Examples:
        >>> import torch
        >>> from lightning_merge.core.checkpoints.checkpoint import save_checkpoint
        >>> weights = {"a": torch.ones(2), "b": torch.zeros(2)}
        >>> folder = save_checkpoint(weights, "sharded", max_shard_size=8)
        >>> open_index(folder / "model.safetensors.index.json")["a"]
        tensor([1., 1.])
    """
    with reading(path):
        source = SourceFile(path)
        index = parse_json(source.read(0, source.size))
        if isinstance(index, dict) and "weight_map" not in index:
            raise InputError("is not an index of shards: give the file of weights or its folder")
        files = index["weight_map"]
        metadata = {key: str(value) for key, value in (index.get("metadata") or {}).items()}
        for file in set(files.values()):
            _check_shard(path.parent, file)
    shards = {file: open_file(path.parent / file) for file in dict.fromkeys(files.values())}
    missing = [name for name, file in files.items() if name not in shards[file]]
    if missing or not files:
        raise InputError(
            f"{path} names tensors that are not in their shards: {enumerate_names(missing)}. "
            "Copy or download the folder again"
        )
    entries = {name: shards[file].entry(name) for name, file in files.items()}
    return Checkpoint(entries, path=path, metadata=metadata)


def _check_shard(folder: Path, file: Any) -> None:
    place = PurePosixPath(file)
    if place.is_absolute() or not place.name or ".." in place.parts:
        raise InputError(f"names the shard {file!r}, which is not below its folder: check the file")
    if not (folder / place).is_file():
        what = broken_link(folder / place) or "which is missing"
        raise InputError(f"names the shard {file!r}, {what}: copy or download it as well")


def open_file(path: Path, prefix: str = "") -> Checkpoint:
    """Open a checkpoint in one file.

    Args:
        path: The file.
        prefix: Of the wanted tensor names. If names outside the network have it and none within,
            all tensors are returned, by their full path.

    Raises:
        InputError: The file cannot be read.

    Examples:
        >>> import torch
        >>> torch.save({"epoch": 3, "state_dict": {"weight": torch.ones(2)}}, "run.ckpt")
        >>> list(open_file(Path("run.ckpt")))
        ['weight']
    """
    with reading(path):
        source = SourceFile(path)
        start = source.read(0, START)
        is_tensors, is_zip = is_safetensors(start), start[:2] == b"PK"
        if not (is_tensors or is_zip) and (description := describe(start, path)):
            raise InputError(description)
        if is_tensors or (path.suffix == ".safetensors" and not is_zip):
            tensors, metadata = read_header(source)
            return Checkpoint(tensors, path=path, metadata=metadata)
        content = find_tensors(source)
    parts = (content.network, content.parts)
    known = [any(name.startswith(prefix) for name in part) for part in parts]
    if known == [False, True]:
        return Checkpoint(content.parts, path=path)
    if content.note and not prefix:
        warn(
            f"{path}: {content.note}. To select another part, give a prefix: --prefix.NAME PART. "
            "of merge, or open_checkpoint(path, prefix='PART.')"
        )
    return Checkpoint(content.network, path=path)
