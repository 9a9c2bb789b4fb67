"""One EfficientNet under the names of two libraries, timm and efficientnet-pytorch.

The schemes differ in whether blocks are counted within stages or all through, and in the numbers of
BatchNorm layers, which timm counts within a block from 1:

    conv_stem.weight                  _conv_stem.weight
    bn1.weight                        _bn0.weight
    blocks.0.0.conv_dw.weight         _blocks.0._depthwise_conv.weight    of a block that
    blocks.0.0.bn1.weight             _blocks.0._bn1.weight               does not expand
    blocks.0.0.conv_pw.weight         _blocks.0._project_conv.weight
    blocks.1.1.conv_pw.weight         _blocks.2._expand_conv.weight       of one that does
    blocks.1.1.bn1.weight             _blocks.2._bn0.weight
    blocks.1.1.conv_pwl.weight        _blocks.2._project_conv.weight
    conv_head.weight                  _conv_head.weight
    bn2.weight                        _bn1.weight
    classifier.weight                 _fc.weight

Nothing else differs in networks without squeeze-and-excitation, such as EfficientNet-Lite, the only
ones that are translated: of others, tensors stay under names that fit nowhere.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_merge.core.checkpoints.lazy import Entry

_TIMM_STEM, _STEM = "conv_stem.weight", "_conv_stem.weight"
_TIMM_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.(\w+)")
_BLOCK = re.compile(r"_blocks\.(\d+)\.")
_AROUND = {
    "conv_stem": "_conv_stem",
    "bn1": "_bn0",
    "conv_head": "_conv_head",
    "bn2": "_bn1",
    "classifier": "_fc",
}
_SEPARABLE = {
    "conv_dw": "_depthwise_conv",
    "bn1": "_bn1",
    "conv_pw": "_project_conv",
    "bn2": "_bn2",
}
_EXPANDING = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}


def translated(entries: "Mapping[str, Entry]", names: Iterable[str]) -> "dict[str, Entry] | None":
    """Return the tensors of an EfficientNet under the other library's names for them.

    Args:
        entries: By name, perhaps with a prefix.
        names: Names in the wanted scheme, perhaps with another.

    Returns:
        All tensors, those without a counterpart under their own names; None unless `entries` and
        `names` belong to networks of equally many blocks in the two schemes.

    Examples:
        >>> import torch
        >>> from lightning_merge.core.checkpoints.lazy import as_checkpoint
        >>> weight = as_checkpoint({"_conv_stem.weight": torch.ones(2)})
        >>> entries = {name: weight.entry(name) for name in weight}
        >>> list(translated(entries, ["conv_stem.weight"]))
        ['conv_stem.weight']
    """
    names = list(names)
    if (stored := _bare(entries, _STEM)) and (wanted := _bare(names, _TIMM_STEM)):
        timm, others = wanted.values(), stored.values()
        new = {other: own for own, other in _pairs(timm)}
    elif (stored := _bare(entries, _TIMM_STEM)) and (wanted := _bare(names, _STEM)):
        timm, others = stored.values(), wanted.values()
        new = dict(_pairs(timm))
    else:
        return None
    if len(_places(timm)) != len({match[1] for name in others if (match := _BLOCK.match(name))}):
        return None
    made = {}
    for name, entry in entries.items():
        bare = stored.get(name, name)
        made[name.removesuffix(bare) + new.get(bare, bare)] = entry
    return made


def classifier(names: Iterable[str]) -> set[str]:
    """Return the names of an EfficientNet's classifier; none of another network.

    Args:
        names: Of all tensors, in the scheme of either library, perhaps with a prefix.

    Examples:
        >>> classifier(["_conv_stem.weight", "_fc.bias"])
        {'_fc.bias'}
    """
    names = list(names)
    bare = _bare(names, _STEM) or _bare(names, _TIMM_STEM)
    return {name for name in bare if bare[name].startswith(("_fc.", "classifier."))}


def _bare(names: Iterable[str], stem: str) -> dict[str, str]:
    """Return the names of a network by full name, without its prefix; none without this stem."""
    names = list(names)
    full = next((name for name in names if name == stem or name.endswith(f".{stem}")), None)
    if full is None:
        return {}
    prefix = full.removesuffix(stem)
    return {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def _places(timm: Iterable[str]) -> list[tuple[int, int]]:
    """Return stage and number of all blocks, in order."""
    matches = filter(None, map(_TIMM_BLOCK.match, timm))
    return sorted({(int(match[1]), int(match[2])) for match in matches})


def _pairs(timm: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield timm's names, and those of the classifier, with the other library's."""
    timm = {*timm, "classifier.weight", "classifier.bias"}
    places = _places(timm)
    for name in timm:
        layers, prefix = _AROUND, ""
        if block := _TIMM_BLOCK.match(name):
            prefix = f"_blocks.{places.index((int(block[1]), int(block[2])))}."
            expands = f"blocks.{block[1]}.{block[2]}.conv_pwl.weight" in timm
            layers = _EXPANDING if expands else _SEPARABLE
        layer, _, kind = name[block.start(3) if block else 0 :].rpartition(".")
        if layer in layers:
            yield name, f"{prefix}{layers[layer]}.{kind}"
