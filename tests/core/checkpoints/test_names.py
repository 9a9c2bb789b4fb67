"""Names of experts under the base's spelling, with a tensor more or less, and what is ignored."""

import pytest
import torch
import yaml

from lightning_merge.core.checkpoints.checkpoint import as_checkpoint
from lightning_merge.core.checkpoints.names import align_names
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.ignore import taking_part

LAYERS = [*(f"blocks.{i}.w" for i in range(4)), "ids"]


def tensors(names):
    return as_checkpoint({name: torch.ones(1) for name in names})


def take_part(base, experts, ignore=()):
    parts = taking_part({"base": base, **experts}, ignore)
    return parts.pop("base"), parts


def under(prefix, names):
    return [prefix + name for name in names]


PREFIXES = ["", "model.", "module.", "_orig_mod.", "state_dict.model.visual.", "a.module.b."]


@pytest.mark.parametrize("wanted", PREFIXES)
@pytest.mark.parametrize("stored", PREFIXES)
@pytest.mark.parametrize("more", [[], ["head.w"], ["head.w", "head.b"]])
@pytest.mark.parametrize("less", [[], ["ids"], ["blocks.0.w"]])
def test_the_prefix_that_most_names_share(wanted, stored, more, less):
    kept = [name for name in LAYERS if name not in less]
    new = align_names(under(wanted, LAYERS), under(stored, kept + more))
    assert [new[stored + name] for name in kept] == under(wanted, kept)
    assert len(set(new.values())) == len(new) == len(kept + more)
    left = [new[stored + name] for name in more]
    assert set(left).isdisjoint(under(wanted, LAYERS))
    assert all(name.endswith(other) for name, other in zip(left, more, strict=True))


@pytest.mark.parametrize(
    ("wanted", "stored", "spelling"),
    [
        (LAYERS, [*under("model.", LAYERS), "loss.w", "best_acc"], {"best_acc": "best_acc"}),
        (LAYERS, [*LAYERS, "model.x"], {"model.x": "model.x"}),
        ([*under("visual.", LAYERS), "text.w"], LAYERS, {"ids": "visual.ids"}),
        ([*under("visual.", LAYERS), "text.w"], [*LAYERS, "head"], {"head": "head"}),
        ([*under("a.", LAYERS), "b.w"], [*under("c.", LAYERS), "d"], {"c.ids": "a.ids", "d": "d"}),
        ([*LAYERS, "best_acc"], [*under("m.", LAYERS), "x"], {"m.ids": "ids", "x": "x"}),
        (LAYERS, ["m.head", *under("m.", LAYERS), "head"], {"m.head": "m.head", "head": "head"}),
        (["fc.w", "fc.b"], ["net.fc.w", "net.fc.b", "net.head"], {"net.head": "head"}),
    ],
)
def test_spellings(wanted, stored, spelling):
    assert align_names(wanted, stored).items() >= spelling.items()


def test_twins_in_the_base():
    base = [*under("model.", LAYERS), *under("ema.", LAYERS)]
    with pytest.raises(
        InputError, match=r"base has .* 'model\.', 'ema\.'.*--prefix\.base model\. "
    ):
        align_names(base, LAYERS)
    assert align_names(base, base) == {name: name for name in base}
    new = align_names(under("model.", LAYERS), [*LAYERS, "head"])
    assert new["ids"] == "model.ids"


def test_one_tensor_that_is_stored_twice():
    stored = [*under("m.", LAYERS), "ids"]
    with pytest.raises(InputError, match=r"several prefixes: 'm\.', ''"):
        align_names(LAYERS, stored)
    assert align_names(LAYERS, stored, ignored=["ids"])["m.ids"] == "ids"


@pytest.mark.parametrize(
    "stored",
    [
        ["head.w", "head.b"],
        ["other.weight", "conv.bias", "x.y.z"],
        ["text.0.w", "text.1.w", "text.2.w"],
        ["w"],
    ],
)
def test_other_networks_keep_their_names(stored):
    layers = [f"layers.{i}.{leaf}" for i in range(6) for leaf in ("w", "b")]
    assert align_names(layers, stored) == {name: name for name in stored}


@pytest.mark.parametrize("more", [[], ["head.w"]])
def test_twins_are_told_by_their_prefixes(more):
    stored = [*under("model.", LAYERS + more), *under("ema.module.", LAYERS + more)]
    with pytest.raises(InputError) as fault:
        take_part(tensors(LAYERS), {"a": tensors(stored)})
    text = str(fault.value)
    assert text.startswith("a (None): ")
    assert "'model.', 'ema.'" in text
    assert "--prefix.NAME model." in text
    option = text.partition("--ignore ")[2]
    _, views = take_part(tensors(LAYERS), {"a": tensors(stored)}, yaml.safe_load(option.strip("'")))
    assert list(views["a"])[:5] == LAYERS
    _, views = take_part(tensors(LAYERS), {"a": tensors(stored)}, ["model.*"])
    assert list(views["a"])[:5] == LAYERS


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        (["head.*"], LAYERS),
        (["module.head.*"], LAYERS),
        (["*.head.w"], LAYERS),
        (["head.w", "ids"], LAYERS[:-1]),
        (["module.head.w", "module.ids"], LAYERS[:-1]),
        (["head.w", "blocks.[01].*"], LAYERS[2:]),
    ],
)
def test_what_is_ignored_in_either_spelling_takes_no_part_anywhere(ignore, left):
    experts = {
        "a": tensors(under("module.", [*LAYERS, "head.w"])),
        "b": tensors(LAYERS),
        "c": tensors(under("net.", [*LAYERS, "head.w"])),
    }
    ignore = [*ignore, "net.head.w"]
    base, views = take_part(tensors(LAYERS), experts, ignore)
    assert list(base) == left
    assert all(sorted(view) == sorted(left) for view in views.values())
    assert views["a"][left[0]] is experts["a"][f"module.{left[0]}"]


def test_patterns_that_cover_nothing():
    experts = {"a": tensors(under("module.", LAYERS))}
    with pytest.raises(InputError, match=r"no tensor matches 'heads\.\*'"):
        take_part(tensors(LAYERS), experts, ["ids", "heads.*"])
