"""Patterns of names that a user can paste."""

import shlex
from fnmatch import fnmatchcase

import pytest
import torch
import yaml

from lightning_merge.core.checkpoints.checkpoint import as_checkpoint
from lightning_merge.core.checkpoints.patterns import ignore_option
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.ignore import taking_part
from lightning_merge.core.vectors.validate import check_experts

NAMES = [f"blocks.{i}.attn.{leaf}" for i in range(12) for leaf in ("w", "mask", "b")]


@pytest.mark.parametrize(
    "names",
    [
        ["ids"],
        ["head.w", "head.b"],
        [name for name in NAMES if name.endswith("mask")],
        [name for name in NAMES if name.startswith("blocks.1.")],
        [*(f"ema.{name}" for name in NAMES), "step"],
        ["a[0].w", "a*", "b?", "true"],
        ["0", "x: y", "- z", "ü"],
        ["it's", 'a"b', "a, b"],
        ["*x", "&y", "#z"],
    ],
)
def test_the_option_can_be_pasted(names):
    words = shlex.split(
        ignore_option(names, NAMES if names[0] not in NAMES else set(NAMES) - {*names})
    )
    assert words[0] == "--ignore"
    assert len(words) == 2
    patterns = yaml.safe_load(words[1])
    assert len(patterns) <= 4
    everything = {*NAMES, *names}
    covered = {n for n in everything if any(fnmatchcase(n, p) for p in patterns)}
    assert covered == set(names)


def test_names_that_no_pattern_covers_are_counted():
    names = [f"x{i}" for i in range(9)]
    assert ignore_option(names) == "--ignore '[x0, x1, x2, x3]' and 5 more"


def test_the_report_names_the_option_that_mends_it():
    base = {name: torch.ones(1) for name in NAMES} | {"index": torch.tensor([1])}
    masks = [name for name in NAMES if name.endswith("mask")]
    lacking = {name: tensor for name, tensor in base.items() if name not in masks}
    expert = {**lacking, "head": torch.ones(1), "index": torch.tensor([2])}
    with pytest.raises(InputError) as fault:
        check_experts(base, {"a": expert, "b": base})
    option = shlex.split(str(fault.value).partition("out of the merge: ")[2])[1]
    assert option == '["*.mask", head, index]'
    opened = {"base": base, "a": expert, "b": base}
    parts = taking_part({t: as_checkpoint(m) for t, m in opened.items()}, yaml.safe_load(option))
    check_experts(parts.pop("base"), parts)
    with pytest.raises(InputError) as fault:  # another network
        check_experts(base, {"a": {"head": torch.ones(1)}, "b": base})
    assert "--ignore" not in str(fault.value)
