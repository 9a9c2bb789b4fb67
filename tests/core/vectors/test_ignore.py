"""Tensors that a user leaves out, and what is tied to them."""

import pytest
import torch

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.errors import InputError, InputWarning
from lightning_merge.core.vectors.ignore import taking_part
from lightning_merge.core.vectors.validate import check_experts
from lightning_merge.methods import Average

HEAD, EMBED = "lm_head.weight", "embed.weight"


def weights(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        EMBED: torch.randn(9, 4, generator=generator),
        "fc": torch.randn(3, generator=generator),
    }


def stored(folder, name, seed, head):
    """A checkpoint with its head tied in the file, stored twice, of its own, or left out."""
    tensors, path = weights(seed), folder / name
    if head == "tied":
        torch.save(tensors | {HEAD: tensors[EMBED]}, path)
    else:
        heads = {"copied": tensors[EMBED].clone(), "own": torch.randn(9, 4)}
        save_checkpoint(tensors | ({HEAD: heads[head]} if head in heads else {}), path)
    return open_checkpoint(path)


def merged(opened, patterns):
    parts = taking_part(opened, patterns)
    base = parts.pop("base")
    return Average()(base, check_experts(base, parts))


@pytest.mark.parametrize("base", ["tied", "copied"])
@pytest.mark.parametrize("experts", [("left out", "left out"), ("tied", "left out"),
                                     ("copied", "tied")])  # fmt: skip
def test_what_is_tied_to_a_merged_tensor_is_merged_with_it(base, experts, tmp_path):
    opened = {"base": stored(tmp_path, "base", 0, base)}
    opened |= {f"e{k}": stored(tmp_path, f"e{k}", k, head) for k, head in enumerate(experts, 1)}
    with pytest.warns(InputWarning, match=rf"tied in the base.*{HEAD} = {EMBED}"):
        found = merged(opened, [HEAD])
    assert torch.equal(found[HEAD], found[EMBED])
    assert not torch.equal(found[HEAD], opened["base"][HEAD])


@pytest.mark.parametrize(
    ("base", "expert", "patterns"),
    [
        ("own", "left out", [HEAD]),
        ("own", "own", ["*head*"]),
        ("tied", "own", [HEAD]),
        ("copied", "own", [HEAD]),
        ("tied", "tied", [HEAD, EMBED]),
    ],
)
def test_what_is_not_tied_is_left_out(base, expert, patterns, tmp_path):
    opened = {"base": stored(tmp_path, "base", 0, base), "a": stored(tmp_path, "a", 1, expert)}
    parts = taking_part(opened, patterns)
    assert HEAD not in parts["base"]
    assert HEAD not in parts["a"]
    assert list(parts["base"]) == [n for n in opened["base"] if n not in (HEAD, *patterns)]


def test_a_pattern_that_names_nothing():
    with pytest.raises(InputError, match=r"no tensor matches 'text.*'; names begin with a, b"):
        taking_part({"base": save({"a": 1.0}), "x": save({"b": 1.0})}, ["text.*"])


def test_nothing_left_to_merge():
    with pytest.raises(InputError, match=r"ignore=\['\*'\]: no tensor of the base is left"):
        taking_part({"base": save({"a": 1.0}), "x": save({"a": 1.0})}, ["*"])


def save(numbers):
    from lightning_merge.core.checkpoints.checkpoint import as_checkpoint

    return as_checkpoint({name: torch.tensor(number) for name, number in numbers.items()})
