"""One CLIP under the names of two libraries: open_clip (which keeps OpenAI's) and transformers.

The schemes differ in the names, in whether the projections of queries, keys and values are one
tensor, and in the orientation of the final projections:

    visual.conv1.weight                      vision_model.embeddings.patch_embedding.weight
    visual.positional_embedding              vision_model.embeddings.position_embedding.weight
    visual.ln_pre.weight                     vision_model.pre_layrnorm.weight (sic)
    visual...resblocks.0.attn.in_proj_bias   vision_model...layers.0.self_attn.{q,k,v}_proj.bias
    visual.proj [width, dim]                 visual_projection.weight [dim, width]
    transformer.resblocks.0.ln_1.weight      text_model.encoder.layers.0.layer_norm1.weight
    text_projection [width, dim]             text_projection.weight [dim, width]

A tower that is stored alone may lack the level that names it (`visual.`, `vision_model.`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from lightning_merge.core.checkpoints.views import Joined, Rows, Transposed

if TYPE_CHECKING:
    from lightning_merge.core.checkpoints.lazy import Entry

Library = Literal["open_clip", "transformers"]

_MARKS: dict[str, Library] = {
    "ln_pre.weight": "open_clip",
    "ln_final.weight": "open_clip",
    "pre_layrnorm.weight": "transformers",
    "text_model.final_layer_norm.weight": "transformers",
}
_VISION = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_BLOCK = {
    f"{ours}.{kind}": f"{theirs}.{kind}"
    for ours, theirs in {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }.items()
    for kind in ("weight", "bias")
}
_LETTERS = ("q", "k", "v")


def _library_of(names: Iterable[str]) -> Library | None:
    """Return the library whose names for a CLIP, or for one of its towers, are among these."""
    for name in names:
        for mark, library in _MARKS.items():
            if name == mark or name.endswith(f".{mark}"):
                return library
    return None


def vision_tower(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the prefix of a CLIP's vision tower and that of the network around it; None if absent.

    Args:
        names: Of all tensors, in the scheme of either library.

    Examples:
        >>> vision_tower(["model.visual.ln_pre.weight", "model.visual.proj"])
        ('model.visual.', 'model.')
    """
    names = list(names)
    prefixes = (_prefixes(names, m, level) for m, level in zip(*_TOWERS[0][1:3], strict=True))
    return next(filter(None, prefixes), None)


def translated(entries: "Mapping[str, Entry]", names: Iterable[str]) -> "dict[str, Entry] | None":
    """Return the tensors of a CLIP under the other library's names for them.

    Args:
        entries: By name.
        names: Names in the wanted scheme.

    Returns:
        All tensors, those without a counterpart under their own names; None unless `entries` and
        `names` belong to a CLIP in the schemes of different libraries.

    Examples:
        >>> from lightning_merge.core.checkpoints.lazy import as_checkpoint
        >>> import torch
        >>> weight = as_checkpoint({"visual.ln_pre.weight": torch.ones(2)})
        >>> entries = {name: weight.entry(name) for name in weight}
        >>> list(translated(entries, ["vision_model.pre_layrnorm.weight"]))
        ['vision_model.pre_layrnorm.weight']
    """
    names = list(names)
    target, source = _library_of(names), _library_of(entries)
    if target is None or source is None or source == target:
        return None
    made: dict[str, Entry] = {}
    used: set[str] = set()
    walk = _to_transformers if target == "transformers" else _to_open_clip
    for new, view, of in walk(entries, names):
        made[new] = view
        used.update(of)
    return {**made, **{name: entry for name, entry in entries.items() if name not in used}}


class _Tower(NamedTuple):
    """How both libraries name one tower: open_clip first, transformers second."""

    names: Mapping[str, str]
    marks: tuple[str, str]
    levels: tuple[str, str]
    last: tuple[str, str]  # the final projection, which open_clip keeps within the tower's level


_TOWERS = (
    _Tower(
        _VISION,
        ("ln_pre.weight", "pre_layrnorm.weight"),
        ("visual.", "vision_model."),
        ("proj", "visual_projection.weight"),
    ),
    _Tower(
        _TEXT,
        ("ln_final.weight", "final_layer_norm.weight"),
        ("text.", "text_model."),
        ("text_projection", "text_projection.weight"),
    ),
)
Made = tuple[str, "Entry", tuple[str, ...]]
"""New name, tensor, and the names of the stored tensors behind it."""


def _prefixes(names: Iterable[str], mark: str, level: str) -> tuple[str, str] | None:
    """Return the prefix of a tower's tensors and that of the network around it."""
    name = next((name for name in names if name == mark or name.endswith(f".{mark}")), None)
    if name is None:
        return None
    return name.removesuffix(mark), name.removesuffix(mark).removesuffix(level)


def _to_transformers(entries: "Mapping[str, Entry]", _: Sequence[str]) -> Iterator[Made]:
    for tower in _TOWERS:
        if (prefixes := _prefixes(entries, tower.marks[0], tower.levels[0])) is None:
            continue
        prefix, root = prefixes
        own = root + tower.levels[1]
        for name, entry in entries.items():
            if not name.startswith(prefix):
                continue
            tail = name.removeprefix(prefix)
            block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", tail)
            if tail in tower.names:
                yield own + tower.names[tail], entry, (name,)
            elif tail == tower.last[0]:
                yield root + tower.last[1], Transposed((entry,)), (name,)
            elif block:
                for part, view in _parted(block[2], entry):
                    yield f"{own}encoder.layers.{block[1]}.{part}", view, (name,)


def _parted(name: str, entry: "Entry") -> "Iterator[tuple[str, Entry]]":
    """Yield the transformers tensors for one tensor of an open_clip block."""
    if name in _BLOCK:
        yield _BLOCK[name], entry
    elif name in ("attn.in_proj_weight", "attn.in_proj_bias"):
        rows = entry.shape[0] // len(_LETTERS)
        for place, letter in enumerate(_LETTERS):
            part = f"self_attn.{letter}_proj.{name.rpartition('_')[2]}"
            yield part, Rows((entry,), place * rows, rows)


def _to_open_clip(entries: "Mapping[str, Entry]", names: Sequence[str]) -> Iterator[Made]:
    inner = any(name.endswith("text.ln_final.weight") for name in names)  # newer open_clip models
    for tower in _TOWERS:
        if (prefixes := _prefixes(entries, tower.marks[1], tower.levels[1])) is None:
            continue
        prefix, root = prefixes
        own = root + (tower.levels[0] if inner or tower.levels[0] != "text." else "")
        theirs = {new: old for old, new in tower.names.items()}
        for name, entry in entries.items():
            tail = name.removeprefix(prefix)
            if name == root + tower.last[1]:
                yield own + tower.last[0], Transposed((entry,)), (name,)
            elif name.startswith(prefix) and tail in theirs:
                yield own + theirs[tail], entry, (name,)
            elif name.startswith(prefix) and (block := _BLOCK_OF_THEIRS.fullmatch(tail)):
                place = f"{own}transformer.resblocks.{block[1]}."
                yield from _whole(entries, name, block[2], place)


_BLOCK_OF_THEIRS = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
_OUR_BLOCK = {theirs: ours for ours, theirs in _BLOCK.items()}


def _whole(entries: "Mapping[str, Entry]", name: str, part: str, place: str) -> Iterator[Made]:
    """Yield the open_clip tensor for a transformers one, which may be the first of three."""
    if part in _OUR_BLOCK:
        yield place + _OUR_BLOCK[part], entries[name], (name,)
    elif part.startswith("self_attn.q_proj."):
        names = tuple(name.replace("q_proj", f"{letter}_proj") for letter in _LETTERS)
        if all(other in entries for other in names):
            kind = name.rpartition(".")[2]
            parts = tuple(entries[other] for other in names)
            yield f"{place}attn.in_proj_{kind}", Joined(parts), names
