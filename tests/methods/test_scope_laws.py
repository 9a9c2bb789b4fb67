"""What files hold beside the tensors that experts have changed is of no consequence."""

import math

import pytest
import torch
from test_laws import ALONE, BEHIND, make  # noqa: F401

from lightning_merge.methods import Ties

every = pytest.mark.parametrize("make", ALONE + BEHIND, indirect=True)


def inside(weights):
    """The weights of a part of a larger network whose other parts nobody has changed."""
    generator = torch.Generator().manual_seed(9)
    others = {
        "text.0.weight": torch.randn(40, 30, generator=generator),
        "text.mask": torch.full((3, 3), -math.inf),
        "logit_scale": torch.tensor(4.6),
    }
    return {f"tower.{name}": tensor for name, tensor in weights.items()} | others


@every
def test_a_part_is_merged_as_it_would_be_alone(make, base, make_experts, resources):  # noqa: F811
    experts = {task: kept_counters(expert, base) for task, expert in make_experts(3).items()}
    alone = make()(base, experts, scope="changed", **resources)
    wholes = {task: inside(expert) for task, expert in experts.items()}
    merged = make()(inside(base), wholes, scope="changed", **resources)
    for name, tensor in inside(alone).items():
        assert torch.equal(merged[name], tensor), name


@every
def test_copies_of_the_base_leave_nothing_to_merge(make, base, resources):  # noqa: F811
    whole = inside(base)
    merged = make()(whole, {"task0": whole, "task1": whole}, scope="changed", **resources)
    assert all(torch.equal(merged[name], tensor) for name, tensor in whole.items())


def kept_counters(expert, base):
    """An expert with the base's integer tensors."""
    return {n: t if t.is_floating_point() else base[n] for n, t in expert.items()}


@pytest.mark.parametrize("scope", ["all", "changed"])
def test_quantiles_count_what_the_scope_says(scope):
    """Of eight entries a half is kept; with eight more that nobody changed, all of them."""
    task_vector = torch.arange(1.0, 9)
    base = {"w": torch.zeros(8), "frozen": torch.ones(8)}
    expert = {"w": task_vector, "frozen": torch.ones(8)}
    merged = Ties(density=0.5)(base, {"a": expert}, scope=scope)
    kept = int((merged["w"] != 0).sum())
    # The published threshold is the (d - floor(d / 2))-th smallest, and what reaches it stays.
    assert kept == (8 if scope == "all" else 5)
