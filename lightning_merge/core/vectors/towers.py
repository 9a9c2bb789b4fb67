"""Experts that hold only part of a network: that part is merged, the rest comes from the base."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.checkpoint import Checkpoint, as_checkpoint, spelled_as
from lightning_merge.core.checkpoints.clip_names import vision_tower
from lightning_merge.core.checkpoints.efficientnet_names import classifier
from lightning_merge.core.checkpoints.names import match_names
from lightning_merge.core.errors import InputError

_POSITIONS = "position_ids"  # 0, 1, 2, ...: stored by some versions of transformers


class Aligned(NamedTuple):
    """A base and its experts under one set of names.

    Attributes:
        base: The tensors that take part.
        experts: By task; tensors that an expert lacks but others have come from the base.
        passed: Names of the base's tensors that no expert has, except the projection of
            open_clip's vision tower, which transformers stores outside the tower.

    Examples:
        >>> weights = {"w": torch.zeros(2)}
        >>> align(weights, {"mnist": weights}).passed
        []
    """

    base: Checkpoint
    experts: dict[str, Checkpoint]
    passed: list[str]


def align(base: Mapping[str, Tensor], experts: Mapping[str, Mapping[str, Tensor]]) -> Aligned:
    """Bring experts under the names of their base, and find what only the base has.

    Fine-tuned vision towers are published alone or without the text transformer. If an expert
    lacks a whole part of the network, that part was not trained. A part is a name at the first
    level (`vision_model`, `visual_projection`; `visual`, `transformer`). EfficientNets may lack
    their classifier. Parts that an expert holds incompletely, and experts of any other network,
    stay as they are for `check_experts` to judge.

    Args:
        base: Name -> tensor.
        experts: Task -> name -> tensor, under the names of either library and any prefix.

    Examples:
        >>> tower = {"visual.ln_pre.weight": torch.zeros(4), "visual.proj": torch.eye(4)}
        >>> whole = {**tower, "token_embedding.weight": torch.zeros(5, 4)}
        >>> align(whole, {"mnist": tower}).passed
        ['token_embedding.weight']
    """
    whole = as_checkpoint(base)
    held = {task: _held(whole, as_checkpoint(expert)) for task, expert in experts.items()}
    lacking = [names for _, names in held.values()]
    passed = set.intersection(*lacking) if lacking else set()
    tower, _ = vision_tower(whole) or ("", "")
    passed.discard(f"{tower}proj")  # networks that are run on images have it in their tower
    completed = {
        task: expert.joined(_only(whole, names - passed)) for task, (expert, names) in held.items()
    }
    taking_part = (name for name in whole if name not in passed)
    return Aligned(_only(whole, taking_part), completed, [n for n in whole if n in passed])


def _only(checkpoint: Checkpoint, names: Iterable[str]) -> Checkpoint:
    return checkpoint.renamed({name: name for name in names})


def _held(base: Checkpoint, expert: Checkpoint) -> tuple[Checkpoint, set[str]]:
    """Return an expert under the base's names, and the base's names that it leaves out."""
    prefixes = vision_tower(base)
    if set(base) == set(expert):
        return expert, set()
    spelled = spelled_as(expert, base)
    if prefixes is None:
        return spelled, set() if classifier(spelled) else classifier(base)
    prefix, root = prefixes
    parts = _parts(base, prefix, root, translated=spelled is not expert)
    tower = parts.pop(prefix)
    try:
        names = match_names(tower, spelled)
    except InputError:
        return spelled, set()
    own_root = _root(names, prefix, root)
    lacking: set[str] = set()
    for part in parts.values():
        stored = {name: f"{own_root}{name.removeprefix(root)}" for name in part}
        present = {n: s for n, s in stored.items() if own_root is not None and s in spelled}
        names.update(present)
        lacking.update(() if present else part)
    used = set(names.values())
    more = {n: n for n in spelled if n not in used and not _is_positions(spelled, n)}
    return spelled.renamed({**more, **names}), lacking


def _parts(base: Checkpoint, prefix: str, root: str, *, translated: bool) -> dict[str, list[str]]:
    """Return the names of a base by part; the key of the vision tower is its prefix.

    Between libraries, the parts are those of both: transformers stores the projection outside the
    tower, and open_clip the text embeddings outside its transformer.
    """
    parts = defaultdict(list)
    for name in base:
        levels = name.removeprefix(root).split(".")
        part = ".".join(levels[: 2 if translated and levels[0] == "text_model" else 1])
        if levels[-1] == _POSITIONS or (translated and name == f"{prefix}proj"):
            part = name
        elif name.startswith(prefix):  # a lone tower is one part
            part = prefix
        parts[part].append(name)
    return parts


def _root(names: Mapping[str, str], prefix: str, root: str) -> str | None:
    """Return the expert's prefix for the base's root; None for a tower without that level."""
    name, stored = next(iter(names.items()))
    own = stored.removesuffix(name.removeprefix(prefix))
    level = prefix.removeprefix(root)
    return own.removesuffix(level) if own.endswith(level) else None


def _is_positions(checkpoint: Checkpoint, name: str) -> bool:
    """Return whether a tensor only counts positions, 0, 1, 2, ..."""
    if name.rpartition(".")[2] != _POSITIONS or checkpoint.dtype(name).is_floating_point:
        return False
    values = checkpoint[name].flatten()
    return torch.equal(values, torch.arange(len(values), dtype=values.dtype))


def summary(names: Iterable[str]) -> str:
    """Summarise names of tensors: first levels, with the number of names below each.

    Examples:
        >>> summary(["transformer.0.weight", "transformer.0.bias", "logit_scale"])
        'transformer.* (2), logit_scale'
    """
    below = defaultdict(list)
    for name in names:
        below[name.split(".")[0]].append(name)
    texts = (f"{k}.* ({len(v)})" if len(v) > 1 else v[0] for k, v in below.items())
    return ", ".join(texts)
