"""Which tensors take part, which are copied, and which are one and the same."""

import math

import pytest
import torch

from lightning_merge.core.checkpoints.checkpoint import (
    as_checkpoint,
    open_checkpoint,
    save_checkpoint,
)
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.scope import complete, find_scope, twins
from lightning_merge.core.vectors.validate import check_experts
from lightning_merge.methods import TaskArithmetic

SIZE = 300_000  # more than is compared at a time


def weights(seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    return {
        "embed.weight": torch.randn(SIZE // 10, 10, generator=generator),
        "fc.weight": torch.randn(6, 4, generator=generator),
        "norm.weight": torch.ones(4),
        "norm.running_mean": torch.zeros(4),
        "ids": torch.arange(3),
        **more,
    }


def scope(base, *experts, kind="changed"):
    return find_scope(as_checkpoint(base), [as_checkpoint(e) for e in experts], kind)


@pytest.mark.parametrize("position", [0, 4095, 4096, SIZE // 2, SIZE - 1])
@pytest.mark.parametrize("which", [0, 1])
def test_one_changed_entry_of_one_expert_is_found(position, which):
    base = weights()
    experts = [{n: t.clone() for n, t in base.items()} for _ in range(2)]
    experts[which]["embed.weight"].view(-1)[position] += 1
    found = scope(base, *experts)
    assert found.names == ("embed.weight",)
    assert found.kept == {"fc.weight", "norm.weight", "norm.running_mean"}


def test_all_counts_what_nobody_changed():
    found = scope(weights(), weights(), kind="all")
    assert found.names == ("embed.weight", "fc.weight", "norm.weight")
    assert found.kept == {*found.names, "norm.running_mean"}


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_values_that_are_no_numbers_are_compared_too(value, dtype):
    base = {"mask": torch.full((5,), value)}
    same = {"mask": base["mask"].to(dtype, copy=True)}
    assert scope(base, same).kept == {"mask"}
    same["mask"][3] = 1.0
    assert scope(base, same).names == ("mask",)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_is_a_change_and_a_wider_type_is_none(dtype):
    exact = {"w": torch.tensor([0.5, -2.0])}
    assert scope(exact, {"w": exact["w"].to(dtype)}).kept == {"w"}
    rounded = {"w": torch.tensor([0.1, -2.0])}
    assert scope(rounded, {"w": rounded["w"].to(dtype)}).names == ("w",)


def with_copy(weights, name="head.weight", of="embed.weight"):
    return weights | {name: weights[of].clone()}


def test_equal_in_base_and_all_experts_is_tied():
    base, a, b = (with_copy(weights(seed)) for seed in range(3))
    for expert in (a, b):
        expert["norm.weight"] = expert["fc.weight"][0]
    found = scope(base, a, b)
    assert found.ties == {"head.weight": "embed.weight"}
    assert found.names == ("embed.weight", "fc.weight", "norm.weight")
    everything = scope(base, a, b, kind="all")
    assert everything.ties == found.ties
    assert "head.weight" in everything.names


@pytest.mark.parametrize("where", ["base", "expert"])
@pytest.mark.parametrize("position", [0, 100, SIZE - 1])
def test_one_entry_unties(where, position):
    base, expert = with_copy(weights(0)), with_copy(weights(1))
    {"base": base, "expert": expert}[where]["head.weight"].view(-1)[position] += 1
    assert scope(base, expert).ties == {}


def test_a_longer_tensor_that_begins_alike_is_not_tied():
    shapes = {"a": 32, "b": 32, "c": 64, "d": 64}
    base = {name: torch.ones(size) for name, size in shapes.items()}
    expert = {name: tensor + 1 for name, tensor in base.items()}
    assert scope(base, expert).ties == {"b": "a", "d": "c"}
    merged = TaskArithmetic(0.5)(base, {"one": expert})
    assert all(torch.equal(merged[n], torch.full((size,), 1.5)) for n, size in shapes.items())


def test_norms_that_are_equal_before_training_alone_are_not_tied():
    base = {f"norm{i}.weight": torch.ones(4) for i in range(3)}
    expert = {name: torch.randn(4) for name in base}
    assert scope(base, expert).ties == {}


def stored(kind, tensors, path):
    """Weights with a tied tensor as writers of several kinds leave them."""
    if kind == "pickle":
        torch.save(tensors | {"head.weight": tensors["embed.weight"]}, path)
    elif kind == "copies":
        save_checkpoint(with_copy(tensors), path)
    else:
        save_checkpoint(tensors, path)
    return open_checkpoint(path)


@pytest.mark.parametrize("kind", ["pickle", "copies"])
@pytest.mark.parametrize("other", ["left out", "pickle", "copies"])
def test_what_the_base_ties_may_be_missing_in_experts(kind, other, tmp_path):
    base = stored(kind, weights(0), tmp_path / "base")
    experts = {"a": stored("left out", weights(1), tmp_path / "a")}
    experts["b"] = stored(other, weights(2), tmp_path / "b")
    whole = check_experts(base, experts)
    for task, expert in whole.items():
        assert set(expert) == set(base)
        assert torch.equal(expert["head.weight"], experts[task]["embed.weight"])
    assert scope(base, *whole.values()).ties == {"head.weight": "embed.weight"}


def test_what_is_not_tied_may_not_be_missing():
    base = weights(0, **{"head.weight": torch.randn(SIZE // 10, 10)})
    with pytest.raises(InputError, match=r"missing: head.weight"):
        check_experts(base, {"a": weights(1), "b": weights(2)})


@pytest.mark.parametrize("missing", ["norm2.weight", "mask2"])
def test_equal_constants_are_no_ties(missing):
    base = {f"norm{i}.weight": torch.ones(4) for i in (1, 2)}
    base |= {f"mask{i}": torch.full((4,), -math.inf) for i in (1, 2)}
    expert = {name: tensor for name, tensor in base.items() if name != missing}
    plain = {name: tensor.clone() for name, tensor in base.items()}  # no shared memory
    assert twins(as_checkpoint(plain), [missing], expert) == {}
    assert missing not in complete(as_checkpoint(plain), as_checkpoint(expert))
