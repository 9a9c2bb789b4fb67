"""Names of layer normalisations in files converted from TensorFlow, such as the first BERTs."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_merge.core.checkpoints.lazy import Entry

_NEW = {"gamma": "weight", "beta": "bias"}
_OLD = {new: old for old, new in _NEW.items()}
_END = re.compile(r"(.*LayerNorm\.)(gamma|beta|weight|bias)")


def translated(entries: "Mapping[str, Entry]", names: Iterable[str]) -> "dict[str, Entry] | None":
    """Return tensors with `LayerNorm.gamma` and `.beta` called `weight` and `bias`, or back.

    Args:
        entries: Tensors by name.
        names: Wanted names; they tell which of the two is wanted.

    Returns:
        Tensors by name; None if there is nothing to translate.

    Examples:
        >>> entries = {"encoder.LayerNorm.gamma": "a", "encoder.LayerNorm.beta": "b"}
        >>> translated(entries, ["encoder.LayerNorm.weight", "encoder.LayerNorm.bias"])
        {'encoder.LayerNorm.weight': 'a', 'encoder.LayerNorm.bias': 'b'}
    """
    stored, wanted = _ends(entries), _ends(names)
    for spelling in (_NEW, _OLD):
        if stored and stored <= spelling.keys() and wanted and wanted <= set(spelling.values()):
            return {_respelled(name, spelling): entry for name, entry in entries.items()}
    return None


def _ends(names: Iterable[str]) -> set[str]:
    return {end[2] for name in names if (end := _END.fullmatch(name))}


def _respelled(name: str, spelling: Mapping[str, str]) -> str:
    end = _END.fullmatch(name)
    return name if end is None else end[1] + spelling[end[2]]
