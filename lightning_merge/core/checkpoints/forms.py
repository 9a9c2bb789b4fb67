"""Tensors that represent weights without being weights: adapter factors and quantised numbers.

Merging such tensors one by one does not give the same network as merging the weights.
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
"""Levels of names, by the kind of adapter that uses them in peft, kohya's scripts and LyCORIS."""
_LEVELS = [(kind, re.compile(level)) for kind, level in _KINDS.items()]
_HINT = re.compile("lora|dora_|hada_|lokr_|oft_|vera_|ia3_")  # fast to test
_PAIR = re.compile(r"(\w+_)?lora(_linear_layer|\d+)?")  # of diffusers, with `up` and `down` inside
_NOT_LINEAR = frozenset({"DoRA", "OFT"})
_SCALE = r"_?q?scales?(_inv)?(_\d)?"
_SCALE_OF = rf"(LEAF|weight|input|act|activation|output){_SCALE}|q?scales?_(LEAF|weight|input|act)"
_WAYS_OUT = {
    "pruning": "Call torch.nn.utils.prune.remove on pruned layers first, and give plain weights",
    "": "Merge each adapter into its network first and give the full weights: merge_and_unload() "
    "in peft, fuse_lora() in diffusers, or a script of the program that trained it",
}


class Factors(NamedTuple):
    """The tensors that the weights of one layer, or an adapter's change to them, are computed from.

    Attributes:
        kind: Of adapter, such as "LoRA", or "pruning".
        names: Of the tensors.

    Examples:
        >>> Factors("LoRA", ["fc.lora_A", "fc.lora_B"]).kind
        'LoRA'
    """

    kind: str
    names: list[str]


def find_factors(names: Iterable[str]) -> dict[str, Factors]:
    """Return the layers that are stored as factors: adapters, or pruned weights with their masks.

    Args:
        names: Of all tensors of a checkpoint.

    Examples:
        >>> find_factors(["fc.weight", "fc.lora_A.weight", "fc.lora_B.weight"])
        {'fc': Factors(kind='LoRA', names=['fc.lora_A.weight', 'fc.lora_B.weight'])}
    """
    layers: dict[str, Factors] = {}
    names = dict.fromkeys(names)
    for name in filter(_HINT.search, names):
        if place := _place(name):
            kind, layer = place
            old = layers.get(layer, Factors(kind, []))
            layers[layer] = Factors("DoRA" if kind == "DoRA" else old.kind, [*old.names, name])
    for name in names if layers else ():
        layer = name.removesuffix(".alpha")
        if layer != name and layer in layers:
            layers[layer].names.append(name)
    for name in names:
        layer = name.removesuffix("_mask")
        if layer != name and f"{layer}_orig" in names:
            layers[layer] = Factors("pruning", [f"{layer}_orig", name])
    return layers


def _place(name: str) -> tuple[str, str] | None:
    """Return the kind of adapter that a tensor belongs to, and the layer, if any."""
    levels = name.split(".")
    for index, level in enumerate(levels):
        kind = next((kind for kind, pattern in _LEVELS if pattern.fullmatch(level)), None)
        if kind is not None:
            return kind, ".".join(levels[:index])
        if _PAIR.fullmatch(level) and levels[index + 1 : index + 2] in (["up"], ["down"]):
            return "LoRA", ".".join(levels[: index + 1])
    return None


def has_factors(checkpoint: Checkpoint, names: Collection[str]) -> bool:
    """Whether any of some tensors belongs to a layer for which the checkpoint has other factors.

    Args:
        checkpoint: All tensors.
        names: Some of them.

    Examples:
        >>> from lightning_merge.core.checkpoints.lazy import as_checkpoint
        >>> stored = as_checkpoint(dict.fromkeys(["fc.weight", "fc.lora_A", "head.weight"]))
        >>> has_factors(stored, ["fc.weight"]), has_factors(stored, ["head.weight"])
        (True, False)
    """
    layers = set(find_factors(name for name in checkpoint if name not in names))
    layers |= {layer.rpartition(".")[0] for layer in layers if _PAIR.fullmatch(_last(layer))}
    return any(name.rpartition(".")[0] in layers for name in names)


def factors_message(checkpoint: Checkpoint, wanted: Collection[str]) -> str:
    """Return the message for factors, such as an adapter, given as a network; empty for weights.

    Args:
        checkpoint: What was given.
        wanted: Names of the network; factors among them are expected.

    Examples:
        >>> from lightning_merge.core.checkpoints.lazy import as_checkpoint
        >>> factors_message(as_checkpoint(dict.fromkeys(["fc.lora_A", "fc.lora_B"])), ["fc.weight"])
        'holds factors of weights (LoRA), such as fc.lora_A, not weights. Merge each adapter ...'
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

    One factor of each layer may differ between base and experts if the layer is linear in it: the
    mean of the factors then gives the mean of the products.

    Args:
        base: The base network.
        experts: By task.

    Raises:
        InputError: Only some models hold factors, or several factors of a layer were trained.

    Examples:
        >>> from lightning_merge.core.checkpoints.lazy import as_checkpoint
        >>> base = as_checkpoint(dict.fromkeys(["fc.weight"]))
        >>> check_factors(base, {"cars": as_checkpoint(dict.fromkeys(["fc.lora_A"]))})
        Traceback (most recent call last):
        lightning_merge.core.errors.InputError: expert 'cars' holds factors of weights (LoRA), ...
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
    """Refuse quantised numbers, which mean nothing without the scales stored beside them.

    Args:
        checkpoint: All tensors of a file.
        names: The tensors that take part in a merge.
        what: What the checkpoint is called in messages.

    Raises:
        InputError: A tensor has a packed type, or an 8-bit type with a scale.

    Examples:
        >>> import torch
        >>> from lightning_merge.core.checkpoints.lazy import as_checkpoint
        >>> weight = torch.ones(2).to(torch.float8_e5m2)
        >>> stored = as_checkpoint({"fc.weight": weight, "fc.weight_scale": torch.ones(1)})
        >>> check_numbers(stored, ["fc.weight"], "base")
        Traceback (most recent call last):
        lightning_merge.core.errors.InputError: base: 'fc.weight' is quantised (float8_e5m2 ...
    """
    dtypes = {name: checkpoint.dtype(name) for name in names}
    packed = [name for name, dtype in dtypes.items() if dtype in PACKED]
    scaled = {name for name, dtype in dtypes.items() if dtype in FLOAT8}
    scales = dict(_scales(checkpoint, scaled)) if scaled else {}
    if packed or scales:
        name = next(iter([*packed, *scales]))
        kind = str(dtypes[name]).removeprefix("torch.")
        beside = f" with the scale {scales[name]}" if name in scales else ""
        raise InputError(
            f"{what}{': ' if what else ''}'{name}' is quantised ({kind}{beside}): dequantise the "
            "weights first, or exclude tensors that no expert has changed with --ignore"
        )


def _scales(checkpoint: Checkpoint, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield tensors that have a scale, in their module or under their own name, with its name."""
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
    with suppress(InputError):  # of a type unknown to torch
        return checkpoint.dtype(name) in FLOAT8
    return False
