"""Configuration and tokenizer files of merged weights, and how to load the weights."""

import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from lightning_merge.core.checkpoints.checkpoint import Checkpoint
from lightning_merge.core.checkpoints.files import atomic_write
from lightning_merge.core.checkpoints.hub import COMPANIONS


def copy_companions(base: Checkpoint, folder: Path) -> list[str]:
    """Copy the configuration and tokenizer files from the base's folder.

    Args:
        base: Checkpoint of the base, opened from a file.
        folder: Target folder; files of the same names are replaced.

    Returns:
        The names of the copied files.
    """
    assert base.path is not None  # opened from a file
    files = [f for f in sorted(base.path.parent.iterdir()) if f.is_file() and _belongs(f.name)]
    for file in files:
        with atomic_write(folder / file.name) as temporary:
            shutil.copyfile(file, temporary)
    return [file.name for file in files]


def _belongs(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in COMPANIONS)


def how_to_load(
    target: Path, companions: Sequence[str] = (), base: Checkpoint | None = None
) -> str:
    """Return one line on how to load merged weights, whose names are those of the base's file.

    Args:
        target: File or folder of the weights.
        companions: Names of the files copied beside the weights.
        base: Checkpoint of the base; transformers renames tensors read from its own folders.
    """
    if "config.json" in companions:
        return f"to load it: transformers.AutoModel.from_pretrained({str(target)!r})"
    if target.is_dir():
        return (
            "to load it: network.load_state_dict(dict(lightning_merge.core.checkpoints.checkpoint."
            f"open_checkpoint({str(target)!r}))), into the base's network"
        )
    read = f"safetensors.torch.load_file({str(target)!r})"
    if base is not None and base.path is not None and (base.path.parent / "config.json").exists():
        return (
            "to load it: transformers.AutoModel.from_pretrained(FOLDER), where FOLDER has it as "
            f"model.safetensors and config.json of {str(base.path.parent)!r}; --max-shard-size 5GB "
            "writes such a folder"
        )
    return f"to load it: network.load_state_dict({read}), into the base's network"
