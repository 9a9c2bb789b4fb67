"""Checkpoints as lazy, read-only mappings from names to tensors, and how to save them."""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightning_merge.core.checkpoints import clip_names, efficientnet_names, hub, layer_norm_names
from lightning_merge.core.checkpoints.digests import file_hash
from lightning_merge.core.checkpoints.files import atomic_write, claim
from lightning_merge.core.checkpoints.forms import check_numbers, factors_message, has_factors
from lightning_merge.core.checkpoints.lazy import Checkpoint, Described, as_checkpoint
from lightning_merge.core.checkpoints.names import enumerate_names, match_names
from lightning_merge.core.checkpoints.opening import checkpoint_in, open_file, open_index
from lightning_merge.core.checkpoints.safetensors_file import DTYPES
from lightning_merge.core.checkpoints.writer import CheckpointWriter
from lightning_merge.core.errors import InputError

__all__ = [
    "Checkpoint",
    "as_checkpoint",
    "atomic_write",
    "file_hash",
    "match_names",
    "open_checkpoint",
    "open_header",
    "save_checkpoint",
    "select",
    "spelled_as",
]


_TRANSLATIONS = (
    clip_names.translated,
    efficientnet_names.translated,
    layer_norm_names.translated,
)


def spelled_as(checkpoint: Mapping[str, Tensor], names: Iterable[str]) -> Checkpoint:
    """Return a lazy view of a network under the naming scheme of the library of `names`.

    Schemes are known for CLIP, EfficientNet-Lite and old layer normalisations, see `clip_names`,
    `efficientnet_names` and `layer_norm_names` in `lightning_merge.core.checkpoints`. Any other
    network, or one that already has these names, is returned as it is.

    Args:
        checkpoint: Tensors by name.
        names: Names in the wanted scheme.

    Examples:
        >>> clip = {"visual.ln_pre.weight": torch.ones(2)}
        >>> list(spelled_as(clip, ["vision_model.pre_layrnorm.weight"]))
        ['vision_model.pre_layrnorm.weight']
    """
    source = as_checkpoint(checkpoint)
    entries, names = {name: source.entry(name) for name in source}, list(names)
    for translated in _TRANSLATIONS:
        if (made := translated(entries, names)) is not None:
            return Checkpoint(made, path=source.path, metadata=source.metadata)
    return source


def select(checkpoint: Mapping[str, Tensor], names: Iterable[str]) -> Checkpoint:
    """Return a lazy view of `checkpoint` with exactly these `names`, whatever prefix it stores.

    A CLIP or EfficientNet-Lite may have another library's names, see `spelled_as`.

    Args:
        checkpoint: Tensors by name.
        names: The wanted names, such as those of an encoder.

    Raises:
        InputError: Names are missing or ambiguous, see `match_names`, or stored in a form other
            than weights, see `forms`.

    Examples:
        >>> stored = {"model.fc.weight": torch.ones(2), "model.fc.bias": torch.zeros(1)}
        >>> select(stored, ["fc.bias", "fc.weight"])["fc.bias"]
        tensor([0.])
    """
    names = dict.fromkeys(names)
    source = spelled_as(checkpoint, names)
    try:
        matched = _match(names, source)
        check_numbers(source, matched.values())
    except InputError as fault:
        raise InputError(f"{source.path}: {fault}" if source.path else str(fault)) from None
    return source.renamed(matched)


def _match(names: Collection[str], source: Checkpoint) -> dict[str, str]:
    """Match names, and explain the error if the file holds adapters instead of weights."""
    try:
        matched = match_names(names, source)
    except InputError as fault:
        raise InputError(factors_message(source, names) or str(fault)) from None
    if has_factors(source, stored := set(matched.values())):
        raise InputError(factors_message(source, stored))
    return matched


def open_checkpoint(
    path: str | Path, *, prefix: str | None = None, keys: Iterable[str] | None = None
) -> Checkpoint:
    """Open a checkpoint of any kind; its content decides, not its suffix.

    * safetensors; in shards: their index `*.index.json`, or its folder;
    * files of torch.save, through the restricted reader in `checkpoints/unpickle.py`: state
      dicts, Lightning checkpoints (their `state_dict`), whole modules;
    * a folder with one of these, as on the Hub.

    Args:
        path: File, folder, name on the Hub or `package:NAME`, see `hub` and `packages` in
            `lightning_merge.core.checkpoints`.
        prefix: Keep only names under this prefix, such as `encoder.backbone.`, and strip it.
        keys: Keep exactly these names, see `select`.

    Raises:
        InputError: The file is missing, unreadable or damaged, holds no tensors, or there are
            several to choose from.

    Examples:
        >>> torch.save({"encoder.weight": torch.ones(2, 3), "step": 5}, "expert.pt")
        >>> expert = open_checkpoint("expert.pt", prefix="encoder")
        >>> list(expert), expert.shape("weight")
        (['weight'], (2, 3))
    """
    path = hub.weights(path)
    if os.path.isdir(path):
        path = checkpoint_in(path)
    prefix = f"{prefix.rstrip('.')}." if prefix else ""
    checkpoint = open_index(path) if path.suffix == ".json" else open_file(path, prefix)
    if prefix:
        checkpoint = _under(prefix, checkpoint)
    return checkpoint if keys is None else select(checkpoint, keys)


def open_header(path: str | Path, prefix: str | None = None) -> Checkpoint | None:
    """Open the headers of a repository whose weights are not on this machine, and no more.

    Args:
        path: See `open_checkpoint`.
        prefix: See `open_checkpoint`.

    Returns:
        A checkpoint whose tensors have types and shapes, and raise if they are read. None if the
        weights are here, or the Hub gives no headers.

    Examples:
        >>> open_header("expert.pt") is None
        True
    """
    found = hub.headers(path)
    if found is None or any(kind not in DTYPES for _, kind, _ in found):
        return None
    entries = {name: Described(name, DTYPES[kind], tuple(shape)) for name, kind, shape in found}
    checkpoint = Checkpoint({n: e for n, e in entries.items() if not n.endswith("position_ids")})
    return _under(f"{prefix.rstrip('.')}.", checkpoint) if prefix else checkpoint


def _under(prefix: str, checkpoint: Checkpoint) -> Checkpoint:
    names = {name.removeprefix(prefix): name for name in checkpoint if name.startswith(prefix)}
    names.pop("", None)
    if not names:
        tops = enumerate_names(list(dict.fromkeys(name.split(".")[0] for name in checkpoint)))
        raise InputError(
            f"{checkpoint.path}: no tensor's name begins with prefix '{prefix}'. "
            f"Names begin with: {tops}"
        )
    return checkpoint.renamed(names)


def save_checkpoint(
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
    max_shard_size: int | None = None,
) -> Path:
    """Write tensors as one safetensors file, or in shards; it appears completely or not at all.

    Tensors keep their dtype and order (wider dtypes first, so that all are aligned); views are
    written contiguously, tied tensors in full under each name. The same input gives the same
    bytes.

    Args:
        tensors: Mapping, or pairs of name and tensor.
        path: The file, or the folder of the shards; missing parent folders are created.
        metadata: Text by name; `format: pt`, which transformers requires, is added.
        overwrite: Whether an existing file may be replaced.
        max_shard_size: See `CheckpointWriter`.

    Returns:
        The path.

    Raises:
        InputError: `path` cannot be written, or exists and must not be overwritten; a tensor is
            not dense; a name is given twice or is not text.

    Examples:
        >>> save_checkpoint({"weight": torch.tensor([1.0, 2.0])}, "w.safetensors").name
        'w.safetensors'
        >>> open_checkpoint("w.safetensors")["weight"]
        tensor([1., 2.])
    """
    path = Path(path)
    if max_shard_size is None:
        claim(path, overwrite=overwrite).unlink()  # fail before the pairs are computed
    content = tensors if isinstance(tensors, Mapping) else _without_repeats(tensors, path)
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise InputError(f"{path}: '{name}' is not a dense tensor: leave it out or densify it")
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in content.items()}
    with CheckpointWriter(
        path, layout, metadata=metadata, overwrite=overwrite, max_shard_size=max_shard_size
    ) as writer:
        for name, tensor in content.items():
            writer.write(name, 0, tensor)
    return path


def _without_repeats(pairs: Iterable[tuple[str, Tensor]], path: Path) -> dict[str, Tensor]:
    content: dict[str, Tensor] = {}
    for name, tensor in pairs:
        if name in content:
            raise InputError(f"{path}: the name {name!r} is given twice: rename one of the tensors")
        content[name] = tensor
    return content
