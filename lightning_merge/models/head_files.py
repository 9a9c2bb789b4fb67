"""Files of heads: those of `save_heads`, and those published with task vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_merge.core.checkpoints.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from lightning_merge.core.checkpoints.source import SourceFile, reading
from lightning_merge.core.checkpoints.unpickle import find_attributes
from lightning_merge.core.errors import InputError, warn
from lightning_merge.models.heads import (
    CosineHead,
    GELUHead,
    Head,
    LinearHead,
    NormalizedLinearHead,
    ReLUHead,
    TanhHead,
)

_SAVED = (CosineHead, LinearHead, NormalizedLinearHead, TanhHead, GELUHead, ReLUHead)
_KINDS: dict[str, type[Head]] = {kind.__name__: kind for kind in _SAVED}


def save_heads(
    heads: Mapping[str, Head],
    path: str | Path,
    *,
    classes: Mapping[str, Sequence[str]] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the heads of all tasks into one safetensors file.

    Tensors are named ``task/weight`` and so on; the metadata entries ``heads`` and ``classes`` are
    JSON mappings from task to the kind of head and to class names. Heads without class names
    cannot be used with data.

    Args:
        heads: Heads by task.
        path: File to write.
        classes: Class names by task, in the order of the logits, for heads that lack them.
        metadata: Further metadata.

    Returns:
        The path written.

    Raises:
        InputError: A head is of an unknown kind, or the number of names is not that of classes.

    Examples:
        >>> import torch
        >>> head = LinearHead(torch.eye(2)).named(["cat", "dog"])
        >>> file = save_heads({"pets": head}, "heads.safetensors")
        >>> open_checkpoint(file).metadata["classes"]
        '{"pets": ["cat", "dog"]}'
    """
    kinds = {task: type(head).__name__ for task, head in heads.items()}
    if unknown := sorted(set(kinds.values()) - set(_KINDS)):
        raise InputError(f"heads of type {unknown}: only {sorted(_KINDS)} can be saved")
    for task, names in (classes or {}).items():
        if task not in heads:
            raise InputError(f"classes: there is no head of {task!r}, only of {', '.join(heads)}")
        heads[task].named(names)
    tensors = {
        f"{task}/{name}": tensor.detach().cpu().contiguous()
        for task, head in heads.items()
        for name, tensor in head.state_dict().items()
    }
    known = {task: head.classes for task, head in heads.items() if head.classes is not None}
    described = {"heads": json.dumps(kinds), "classes": json.dumps(known)}
    return save_checkpoint(tensors, path, metadata={**(metadata or {}), **described})


def load_heads(source: str | Path | Mapping[str, str | Path]) -> dict[str, Head]:
    """Read frozen heads by task.

    Args:
        source: A file that :func:`save_heads` wrote, whose heads keep their order; or a file for
            each task, either such a file or a published ``head_<Task>.pt``. Published files hold a
            module with ``weight``, ``bias`` and perhaps ``normalize``, or its state dict, without
            class names: those heads are ``published``.

    Raises:
        InputError: A file is missing, unreadable or holds no heads, or lacks the task.

    Examples:
        >>> import torch
        >>> head = LinearHead(torch.eye(2)).named(["cat", "dog"])
        >>> file = save_heads({"pets": head}, "heads.safetensors")
        >>> load_heads(file)["pets"].classes
        ('cat', 'dog')
    """
    if isinstance(source, Mapping):
        return {task: _one_head(task, file) for task, file in source.items()}
    checkpoint = open_checkpoint(source)
    kinds = _entry(checkpoint, "heads")
    if kinds is None:
        if _weight_and_bias(checkpoint):
            raise InputError(
                f"{source} holds one head without the name of its task; give a mapping from task "
                "to file, or a pattern with {task}"
            )
        raise InputError(
            f"{source} holds no heads; give a file that fit wrote, or a published head_TASK.pt"
        )
    return {task: _stored_head(checkpoint, task) for task in kinds}


def _one_head(task: str, path: str | Path) -> Head:
    """Read the head of one task from a file of either form."""
    checkpoint = open_checkpoint(path)
    kinds = _entry(checkpoint, "heads")
    if kinds is None:
        return _published_head(path, checkpoint)
    if task not in kinds:
        raise InputError(f"{path} has no head for {task!r}, only for {', '.join(kinds)}")
    return _stored_head(checkpoint, task)


def _entry(checkpoint: Checkpoint, key: str) -> dict[str, Any] | None:
    """Return a metadata entry, a JSON mapping by task; None if it is missing."""
    if key not in checkpoint.metadata:
        return None
    try:
        content = json.loads(checkpoint.metadata[key])
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(
            f"{checkpoint.path}: the metadata entry {key!r} is damaged; write it again"
        )
    return content


def _stored_head(checkpoint: Checkpoint, task: str) -> Head:
    """Build one head from a file that :func:`save_heads` wrote."""
    kind = (_entry(checkpoint, "heads") or {})[task]
    if kind not in _KINDS:
        raise InputError(
            f"{checkpoint.path}: the head of {task!r} has the unknown kind {kind!r}; known are "
            f"{', '.join(_KINDS)}. Was it written by a newer version?"
        )
    parts = {name: name.rpartition("/") for name in checkpoint}
    state = {last: checkpoint[n] for n, (first, _, last) in parts.items() if first == task}
    try:
        head = _KINDS[kind](**state)
    except TypeError as fault:
        raise InputError(f"{checkpoint.path}: the head of {task!r} is damaged ({fault})") from None
    return head.named((_entry(checkpoint, "classes") or {}).get(task))


def _weight_and_bias(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the stored names of a single linear layer's tensors; empty for anything else."""
    last = {name.rpartition(".")[2]: name for name in checkpoint}
    prefixes = {name.rpartition(".")[0] for name in checkpoint}
    alone = len(last) == len(checkpoint) and len(prefixes) == 1
    linear = "weight" in last and last.keys() <= {"weight", "bias"}
    return last if alone and linear and len(checkpoint.shape(last["weight"])) == 2 else {}


def _published_head(path: str | Path, checkpoint: Checkpoint) -> Head:
    """Build the head from a pickled module or its state dict."""
    names = _weight_and_bias(checkpoint)
    if not names:
        raise InputError(
            f"{path} holds no head; give a file that fit wrote, or a published one with "
            "weight [classes, dim] and perhaps bias [classes]"
        )
    attributes: dict[str, Any] = {}
    if checkpoint.path is not None:
        with reading(checkpoint.path):
            attributes = find_attributes(SourceFile(checkpoint.path))
    if not attributes:
        warn(
            f"{path} does not say whether features are normalised before its head; they are, "
            "as for published heads. If this is wrong, save the head as a LinearHead by save_heads"
        )
    kind = NormalizedLinearHead if attributes.get("normalize", not attributes) else LinearHead
    head = kind(**{last: checkpoint[name].float() for last, name in names.items()})
    head.published = True
    return head
