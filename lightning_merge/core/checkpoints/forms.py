"""Forms in which files hold what weights are made of, and not weights: factors, scaled numbers.

Merging such tensors one by one gives another network than merging what they stand for.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from lightning_merge.core.checkpoints.equality import differ
from lightning_merge.core.checkpoints.lazy import Checkpoint
from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.dtypes import FLOAT8, PACKED
from lightning_merge.core.errors import InputError

_KINDS = {
    "DoRA": r"lora_magnitude_vector|dora_scale",
    "LoRA": r"lora_(embedding_)?[AB]|lora_[abE]|lora_(up|down|mid)",
    "LoHa": r"hada_[wt]\d(_[ab])?",
    "LoKr": r"lokr_[wt]\d(_[ab])?",
    "OFT": r"b?oft_([rRs]|blocks|diag)",
    "VeRA": r"vera_(lambda_[bd]|[AB])",
    "(IA)^3": r"ia3_l",
}
"""Levels of names, by the adapter that has them in peft, kohya's scripts and LyCORIS."""
_LEVELS = [(kind, re.compile(level)) for kind, level in _KINDS.items()]
_HINT = re.compile("lora|dora_|hada_|lokr_|oft_|vera_|ia3_")  # soon told
_PAIR = re.compile(r"(\w+_)?lora(_linear_layer|\d+)?")  # of diffusers: `up` and `down` are in it
_NOT_LINEAR = frozenset({"DoRA", "OFT"})
_SCALE = r"_?q?scales?(_inv)?(_\d)?"
_SCALE_OF = rf"(LEAF|weight|input|act|activation|output){_SCALE}|q?scales?_(LEAF|weight|input|act)"
_WAYS_OUT = {
    "pruning": "Call torch.nn.utils.prune.remove on pruned layers first, and give plain weights",
    "": "Merge each adapter into its network first and give the full weights: merge_and_unload() "
    "of peft, fuse_lora() of diffusers, or a script of the program that trained it",
}


class Factors(NamedTuple):
    """What the weights of one layer, or what an adapter adds to them, are made of."""

    kind: str
    names: list[str]


def find_factors(names: Iterable[str]) -> dict[str, Factors]:
    """Return the layers that some tensors are factors of: adapters, or pruned weights and masks."""
    found: dict[str, Factors] = {}
    names = dict.fromkeys(names)
    for name in filter(_HINT.search, names):
        if place := _place(name):
            kind, layer = place
            old = found.get(layer, Factors(kind, []))
            found[layer] = Factors("DoRA" if kind == "DoRA" else old.kind, [*old.names, name])
    for name in names if found else ():
        layer = name.removesuffix(".alpha")
        if layer != name and layer in found:
            found[layer].names.append(name)
    for name in names:
        layer = name.removesuffix("_mask")
        if layer != name and f"{layer}_orig" in names:
            found[layer] = Factors("pruning", [f"{layer}_orig", name])
    return found


def _place(name: str) -> tuple[str, str] | None:
    """Return the kind of adapter that a tensor is a factor of, and the layer."""
    levels = name.split(".")
    for index, level in enumerate(levels):
        kind = next((kind for kind, pattern in _LEVELS if pattern.fullmatch(level)), None)
        if kind is not None:
            return kind, ".".join(levels[:index])
        if _PAIR.fullmatch(level) and levels[index + 1 : index + 2] in (["up"], ["down"]):
            return "LoRA", ".".join(levels[: index + 1])
    return None


def has_factors(checkpoint: Checkpoint, names: Collection[str]) -> bool:
    """Whether some tensors of a checkpoint are of layers that it has other factors for."""
    layers = set(find_factors(name for name in checkpoint if name not in names))
    layers |= {layer.rpartition(".")[0] for layer in layers if _PAIR.fullmatch(_last(layer))}
    return any(name.rpartition(".")[0] in layers for name in names)


def factors_message(checkpoint: Checkpoint, wanted: Collection[str]) -> str:
    """Return the message for factors given as a network, such as an adapter; empty for weights.

    Args:
        checkpoint: What was given.
        wanted: Names of the network; factors among them are as they should be.
    """
    layers = find_factors(name for name in checkpoint if name not in wanted)
    kind, names = next(iter(layers.values()), Factors("", []))
    is_peft = checkpoint.path is not None and checkpoint.path.name.startswith("adapter_model.")
    if is_peft and not layers:
        kind, names = "peft", [name for name in checkpoint if name not in wanted]
    if not names:
        return ""
    return f"holds factors of weights ({kind}), such as {names[0]}, not weights. {_way_out(kind)}"


def check_factors(base: Checkpoint, experts: Mapping[str, Checkpoint]) -> None:
    """Refuse factors of weights that would be merged one by one.

    One factor of each layer may differ between base and experts, if the layer is linear in it:
    the mean of the factors then gives the mean of the products.

    Raises:
        InputError: Only some models hold factors, or more than one of a layer was trained.
    """
    for task, expert in experts.items():
        if message := factors_message(expert, base):
            raise InputError(f"expert '{task}'{_of(expert)} {message}")
        if message := factors_message(base, expert):
            raise InputError(f"base{_of(base)} {message}")
    for layer, (kind, names) in find_factors(base).items():
        changed = [n for n in names if any(differ(base, e, n) for e in experts.values())]
        if len(changed) > 1 or (changed and kind in _NOT_LINEAR):
            raise InputError(
                f"base and experts hold factors of weights ({kind}) that differ in "
                f"{enumerate_names(changed, 3)}: merged one by one they would not give the merged "
                f"layer '{layer}'. {_way_out(kind)}"
            )


def _way_out(kind: str) -> str:
    return _WAYS_OUT.get(kind, _WAYS_OUT[""])


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _of(checkpoint: Checkpoint) -> str:
    return f" ({checkpoint.path})" if checkpoint.path else ""


def check_numbers(checkpoint: Checkpoint, names: Iterable[str], what: str = "") -> None:
    """Refuse numbers that mean nothing without scales that lie beside them.

    Args:
        checkpoint: All of a file.
        names: The tensors of it that take part in a merge.
        what: What it is called in messages.

    Raises:
        InputError: One of them is of a packed type, or of 8 bits with a scale.
    """
    dtypes = {name: checkpoint.dtype(name) for name in names}
    packed = [name for name, dtype in dtypes.items() if dtype in PACKED]
    scaled = {name for name, dtype in dtypes.items() if dtype in FLOAT8}
    found = dict(_scales(checkpoint, scaled)) if scaled else {}
    if packed or found:
        name = next(iter([*packed, *found]))
        kind = str(dtypes[name]).removeprefix("torch.")
        beside = f" with the scale {found[name]}" if name in found else ""
        raise InputError(
            f"{what}{': ' if what else ''}'{name}' is quantised ({kind}{beside}): dequantise the "
            "weights first, or have merge leave out (--ignore) what no expert has changed"
        )


def _scales(checkpoint: Checkpoint, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Names of tensors that have a scale in their module, or under their own name, and of that."""
    modules = defaultdict(list)
    for name in checkpoint:
        if "scale" in _last(name):
            modules[name.rpartition(".")[0]].append(name)
    for name in names:
        module, _, leaf = name.rpartition(".")
        own = re.compile(_SCALE_OF.replace("LEAF", re.escape(leaf)))
        for scale in modules[module]:
            bare = leaf == "weight" and re.fullmatch(_SCALE, _last(scale))
            if (bare or own.fullmatch(_last(scale))) and not _is_float8(checkpoint, scale):
                yield name, scale
        for scale in modules[name]:
            yield name, scale


def _is_float8(checkpoint: Checkpoint, name: str) -> bool:
    with suppress(InputError):  # of a type that torch does not know
        return checkpoint.dtype(name) in FLOAT8
    return False
