"""Configuration and tokenizer files of merged weights, and how to load the weights."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from lightning_merge.cli.usage import program
from lightning_merge.core.checkpoints.checkpoint import Checkpoint
from lightning_merge.core.checkpoints.files import atomic_write
from lightning_merge.core.checkpoints.library import Library, companions, loading


def copy_companions(base: Checkpoint, folder: Path) -> list[str]:
    """Copy the configuration and tokenizer files from the base's folder.

    Args:
        base: Checkpoint of the base, opened from a file.
        folder: Target folder; files of the same names are replaced.

    Returns:
        The names of the copied files.
    """
    assert base.path is not None  # opened from a file
    files = companions(base.path.parent)
    for file in files:
        with atomic_write(folder / file.name) as temporary:
            shutil.copyfile(file, temporary)
    return [file.name for file in files]


def how_to_load(
    target: Path,
    library: Library | None,
    base: str | None = None,
    copied: Sequence[str] = (),
) -> str:
    """Return one line on how to load merged weights in the library of their network.

    Args:
        target: File or folder of the weights.
        library: The library; None if it is unknown.
        base: What describes the network, or has what the weights lack, as the user gives it.
        copied: Names of the files copied beside the weights, of a folder.
    """
    if library == "transformers" and "config.json" in copied:
        return f"to load it: {loading(library, target)}"
    if library is None and target.is_dir():
        return (
            "to load it: network.load_state_dict(dict(lightning_merge.core.checkpoints.checkpoint."
            f"open_checkpoint({str(target)!r}))), into the base's network"
        )
    if library is None:
        read = f"safetensors.torch.load_file({str(target)!r})"
        return f"to load it: network.load_state_dict({read}), into the base's network"
    folder = target.with_name(f"{target.stem}-{library}")
    words = ["convert", str(target), "--to", library, "--output", str(folder)]
    words += [] if base is None else ["--base", base]
    return f"to load it: {program()} {shlex.join(words)}; then {loading(library, folder)}"
