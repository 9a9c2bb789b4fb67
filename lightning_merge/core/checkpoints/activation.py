"""The activation function of CLIP blocks: weights load with either one, but need the right one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.checkpoint import Checkpoint, open_checkpoint
from lightning_merge.core.checkpoints.library import OPEN_CLIP_CONFIG, fields_of
from lightning_merge.core.checkpoints.source import SourceFile, reading
from lightning_merge.core.checkpoints.unpickle import find_classes
from lightning_merge.core.errors import InputError

KEY = "activation"
"""Metadata entry that records the activation in files written by this package."""
_CLASSES = {
    "QuickGELU": "quick_gelu",
    "QuickGELUActivation": "quick_gelu",
    "GELU": "gelu",
    "GELUActivation": "gelu",
}


def named(classes: set[str]) -> str | None:
    """Return the activation named by the classes of a network's modules; None unless it is unique.

    Args:
        classes: Class names without their packages.

    Examples:
        >>> named({"Linear", "QuickGELU"})
        'quick_gelu'
    """
    kinds = {_CLASSES[name] for name in classes if name in _CLASSES}
    return kinds.pop() if len(kinds) == 1 else None


def activation_of(path: str | Path, opened: Checkpoint | None = None) -> str | None:
    """Return the activation that a checkpoint names, such as "quick_gelu" or "gelu"; None if none.

    Files written by this package record it in their metadata, folders in config.json or
    open_clip_config.json, pickled modules and TorchScript in the classes of their modules.

    Args:
        path: File, folder or name on the Hub.
        opened: The checkpoint at that path, if it is already open.

    Raises:
        InputError: The checkpoint cannot be read.

    Examples:
        >>> from safetensors.torch import save_file
        >>> import torch
        >>> save_file({"w": torch.ones(1)}, "clip.safetensors", metadata={"activation": "gelu"})
        >>> activation_of("clip.safetensors")
        'gelu'
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
    """Return the activation that some checkpoints name; those that name none are ignored.

    Args:
        paths: Role, such as "base", -> file or folder.
        opened: Role -> open checkpoint.

    Raises:
        InputError: The checkpoints name different activations.

    Examples:
        >>> base, expert = (Checkpoint({}, metadata=data) for data in ({}, {"activation": "gelu"}))
        >>> agreed({"base": "b.pt", "expert": "e.pt"}, {"base": base, "expert": expert})
        'gelu'
    """
    stated = {what: activation_of(path, opened[what]) for what, path in paths.items()}
    known = {what: kind for what, kind in stated.items() if kind is not None}
    if len(set(known.values())) > 1:
        each = ", ".join(f"{what} {kind}" for what, kind in known.items())
        raise InputError(
            f"the networks have different activations: {each}. Give experts fine-tuned from this "
            "base, which share its activation"
        )
    return next(iter(known.values()), None)


def _described(folder: Path) -> str | None:
    """Return the activation that a folder's configuration files name, if any."""
    config = fields_of(folder / "config.json")
    vision = {**config, **_part(config, "vision_config"), **_part(config, "vision_config_dict")}
    if str(config.get("model_type", "")).startswith("clip"):
        kind = vision.get("hidden_act")
        return kind if isinstance(kind, str) else None
    model = _part(fields_of(folder / OPEN_CLIP_CONFIG), "model_cfg")
    if not model:
        return None
    return "quick_gelu" if model.get("quick_gelu") is True else "gelu"


def _part(fields: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = fields.get(key)
    return value if isinstance(value, dict) else {}
