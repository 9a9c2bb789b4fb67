"""The activation of a CLIP's blocks: weights fit either, and do badly with the wrong one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.checkpoint import Checkpoint, open_checkpoint
from lightning_merge.core.checkpoints.source import SourceFile, reading
from lightning_merge.core.checkpoints.unpickle import find_classes
from lightning_merge.core.errors import InputError

KEY = "activation"
"""Entry of the metadata that says it in files written here."""
_CLASSES = {
    "QuickGELU": "quick_gelu",
    "QuickGELUActivation": "quick_gelu",
    "GELU": "gelu",
    "GELUActivation": "gelu",
}


def named(classes: set[str]) -> str | None:
    """Return the one activation among the classes of a network's modules; else None."""
    kinds = {_CLASSES[name] for name in classes if name in _CLASSES}
    return kinds.pop() if len(kinds) == 1 else None


def activation_of(path: str | Path, opened: Checkpoint | None = None) -> str | None:
    """Return the activation that a checkpoint names: "quick_gelu", "gelu", another one, or none.

    Files written here say it in their metadata, folders in their config.json or
    open_clip_config.json, whole pickled modules and TorchScript by the classes of their modules.

    Args:
        path: File or folder, or a name of the Hub.
        opened: The checkpoint in it, if it is open already.

    Raises:
        InputError: The checkpoint cannot be read.
    """
    checkpoint = open_checkpoint(path) if opened is None else opened
    if KEY in checkpoint.metadata:
        return checkpoint.metadata[KEY]
    folder = hub.local(path)
    if folder.is_dir():
        return _described(folder)
    if checkpoint.path is None:
        return None
    with reading(checkpoint.path):
        return named(find_classes(SourceFile(checkpoint.path)))


def agreed(paths: Mapping[str, str], opened: Mapping[str, Checkpoint]) -> str | None:
    """Return what some checkpoints say of their activation, those of them that say it.

    Args:
        paths: "base" and the like -> file or folder.
        opened: The same -> the checkpoint in it.

    Raises:
        InputError: They do not say the same.
    """
    stated = {what: activation_of(path, opened[what]) for what, path in paths.items()}
    told = {what: kind for what, kind in stated.items() if kind is not None}
    if len(set(told.values())) > 1:
        each = ", ".join(f"{what} {kind}" for what, kind in told.items())
        raise InputError(
            f"the networks have different activations: {each}. Give experts of this base, which "
            "have the same"
        )
    return next(iter(told.values()), None)


def _described(folder: Path) -> str | None:
    """Return what the files of a folder say; nothing where they cannot be read."""
    config = _fields(folder / "config.json")
    vision = {**config, **_part(config, "vision_config"), **_part(config, "vision_config_dict")}
    if str(config.get("model_type", "")).startswith("clip"):
        kind = vision.get("hidden_act")
        return kind if isinstance(kind, str) else None
    model = _part(_fields(folder / "open_clip_config.json"), "model_cfg")
    if not model:
        return None
    return "quick_gelu" if model.get("quick_gelu") is True else "gelu"


def _fields(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):  # who needs the file says what is wrong with it
        return {}
    return content if isinstance(content, dict) else {}


def _part(fields: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = fields.get(key)
    return value if isinstance(value, dict) else {}
