"""Strict loading of modules from published weights, and errors about names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path

from torch import Tensor, nn

from lightning_merge.core.checkpoints.checkpoint import (
    Checkpoint,
    as_checkpoint,
    match_names,
    open_checkpoint,
    select,
    spelled_as,
)
from lightning_merge.core.errors import InputError

CheckpointLike = str | Path | Mapping[str, Tensor]
"""A checkpoint file or folder, or a mapping from names to tensors."""

_PROJECTION = "proj"  # of open_clip's visual towers


def unknown_name(argument: str, value: str, known: Iterable[str], remedy: str = "") -> InputError:
    """Return the error for an unknown name, with the nearest known names.

    Examples:
        >>> raise unknown_name("name", "resnet5O", ["resnet18", "resnet50"])
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: unknown name 'resnet5O'; did you mean resnet50,
        resnet18?
    """
    near = difflib.get_close_matches(value, list(known), n=5, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else "." if remedy else ""
    return InputError(f"unknown {argument} {value!r}{hint} {remedy}".rstrip())


def load_strict(module: nn.Module, source: CheckpointLike, *, leave_out: str = "") -> None:
    """Load every tensor of ``module`` from a checkpoint that may also hold other modules.

    Args:
        module: Module to load into; its state dict gives the names.
        source: A checkpoint file or folder, or a mapping.
        leave_out: Prefix of names that are not loaded and may be missing.

    Raises:
        InputError: See :func:`fitting`.

    Examples:
        >>> import torch
        >>> layer = nn.Linear(1, 1)
        >>> load_strict(layer, {"fc.weight": torch.tensor([[3.0]]), "fc.bias": torch.tensor([1.0])})
        >>> layer(torch.tensor([2.0])).item()
        7.0
    """
    module.load_state_dict(fitting(module, source, leave_out=leave_out), strict=not leave_out)


def fitting(
    module: nn.Module,
    source: CheckpointLike,
    *,
    spare: Mapping[str, Tensor] | None = None,
    leave_out: str = "",
) -> Checkpoint:
    """Return a checkpoint's tensors under the names of ``module``, exactly those it has.

    Args:
        module: Module whose state dict gives the names.
        source: A checkpoint file or folder, or a mapping; a CLIP under either library's names.
        spare: Tensors that transformers keeps outside a tower and this module inside, by name; used
            if the checkpoint holds only such a tower.
        leave_out: Prefix of names that are not wanted.

    Raises:
        InputError: The file cannot be read, or tensors are missing, have another shape, or have no
            place in the submodules of ``module`` that the checkpoint fills.

    Examples:
        >>> import torch
        >>> fitting(nn.Linear(1, 1), {"weight": torch.zeros(2, 1), "bias": torch.zeros(1)})
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: weights=the given mapping: another architecture
        than the model's Linear: weight has shape [2, 1] instead of [1, 1]. Give weights of this
        model, or the model of these weights
    """
    stored = as_checkpoint(source) if isinstance(source, Mapping) else open_checkpoint(source)
    origin = "the given mapping" if isinstance(source, Mapping) else str(source)
    own = {
        n: t for n, t in module.state_dict().items() if not leave_out or not n.startswith(leave_out)
    }
    checkpoint = spelled_as(stored, own)
    if checkpoint is not stored:
        checkpoint = _completed(checkpoint, own, spare or {}, origin)
    wanted = select(checkpoint, own)
    if problems := [*_misshapen(own, wanted), *_left_over(module, own, checkpoint)]:
        raise InputError(
            f"weights={origin}: another architecture than the model's {type(module).__name__}: "
            f"{_enumerate(problems)}. Give weights of this model, or the model of these weights"
        )
    return wanted


def _completed(
    checkpoint: Checkpoint, own: Mapping[str, Tensor], spare: Mapping[str, Tensor], origin: str
) -> Checkpoint:
    """Add the projection, which the other library keeps outside, to a translated tower."""
    if _PROJECTION not in own or any(
        n == _PROJECTION or n.endswith(f".{_PROJECTION}") for n in checkpoint
    ):
        return checkpoint
    if _PROJECTION not in spare:
        raise InputError(
            f"weights={origin}: a vision tower without its visual_projection, which is part of "
            "this model. Build the encoder with the weights of the whole CLIP, and load this into "
            "it"
        )
    rest = [name for name in own if name != _PROJECTION]
    prefix = match_names(rest, checkpoint)[rest[0]].removesuffix(rest[0])
    return checkpoint.joined(as_checkpoint({prefix + _PROJECTION: spare[_PROJECTION]}))


def _misshapen(own: Mapping[str, Tensor], stored: Checkpoint) -> Iterator[str]:
    """Describe the tensors whose shape differs."""
    for name, tensor in own.items():
        if (shape := stored.shape(name)) != tensor.shape:
            yield f"{name} has shape {list(shape)} instead of {list(tensor.shape)}"


def _left_over(
    module: nn.Module, names: Iterable[str], checkpoint: Mapping[str, Tensor]
) -> Iterator[str]:
    """Describe stored tensors that fit no place in the module's submodules.

    Otherwise, a deeper network of the same width would load as its own first half.
    """
    own = list(names)
    stored = match_names(own, checkpoint)
    ends = zip(min(own).split(".")[:-1], max(own).split(".")[:-1], strict=False)
    shared = "".join(f"{level}." for level, _ in takewhile(lambda pair: len(set(pair)) == 1, ends))
    prefix = stored[own[0]].removesuffix(own[0].removeprefix(shared))
    filled = {name.removeprefix(shared).split(".")[0] for name in own}
    buffers = {prefix + name.removeprefix(shared) for name, _ in module.named_buffers()}
    for name in sorted(set(checkpoint).difference(stored.values(), buffers)):
        if name.startswith(prefix) and name.removeprefix(prefix).split(".")[0] in filled:
            yield f"{name} is left over"


def _enumerate(problems: list[str], limit: int = 20) -> str:
    """Join the first problems and count the others."""
    more = [f"and {len(problems) - limit} more"] if len(problems) > limit else []
    return "; ".join(problems[:limit] + more)
