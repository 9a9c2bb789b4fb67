"""Merging at many scales from one direction: the weights of separate merges, to the bit."""

from dataclasses import replace

import pytest
import torch
from tiny_networks import tied_zoo

from lightning_merge.core.cost import Cost, charge, measured
from lightning_merge.core.errors import InputError
from lightning_merge.methods import Average, LwPTV, MergeMethod, MTies, Resources, Ties, registered
from lightning_merge.methods.linear import Directions, Linear, is_separable

METHODS = registered(MergeMethod)
SEPARABLE = sorted(name for name in METHODS if issubclass(METHODS[name], Linear))
SCALES = (0.3, 1.0, -0.7, 0.0, 1 / 3)


def same(got, want):
    assert list(got) == list(want)
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


def test_which_methods_are_linear_in_their_scale():
    assert {"TaskArithmetic", "Ties", "Consensus", "PCB", "KnOTS", "TSVM", "IsoC", "IsoCTS"} <= {
        *SEPARABLE
    }
    assert not is_separable(MTies())  # what it ranks has passed through layers merged before
    assert not is_separable(Average())

    class Other(Ties):
        def plan(self, vectors, resources):
            return lambda span, tile: tile[0]

    assert not is_separable(Other())


@pytest.mark.parametrize("before", [(), (LwPTV(),)], ids=["plain", "LwPTV"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("name", SEPARABLE)
def test_the_weights_are_those_of_separate_merges(
    name, dtype, before, base, make_experts, monkeypatch
):
    monkeypatch.setattr("lightning_merge.core.vectors.tiles.TILE", 100)
    base = {n: t.to(dtype) if t.is_floating_point() else t for n, t in base.items()}
    experts = make_experts(3, base)
    method = METHODS[name](transforms=before)
    for scope in ("all", "changed"):
        resources = Resources(scope=scope)
        kept = Directions(method, base, experts, resources)
        for scale in SCALES:
            same(kept.at(scale), replace(method, scale=scale).merge(base, experts, resources))


def test_tied_weights_and_what_no_expert_changes():
    model, base, experts = tied_zoo(3)
    untouched = next(iter(base))
    experts = {task: {**weights, untouched: base[untouched]} for task, weights in experts.items()}
    resources = Resources(model=model)
    kept = Directions(Ties(), base, experts, resources)
    for scale in SCALES:
        same(kept.at(scale), Ties(scale=scale).merge(base, experts, resources))


def test_what_is_too_large_is_refused_at_its_scale_alone(base, make_experts):
    kept = Directions(Ties(), base, make_experts(2), Resources())
    with pytest.raises(InputError, match="choose a smaller scale"):
        kept.at(1e39)
    kept.at(1.0)


def test_earlier_work_counts_in_what_is_measured():
    with measured(torch.device("cpu")) as outer, measured(torch.device("cpu")) as inner:
        charge(Cost(seconds=50.0, peak_memory=2**60))
    for cost in (outer, inner):
        assert 50 < cost.seconds < 110
        assert cost.peak_memory == 2**60
    with measured(torch.device("cpu")) as later:
        pass
    assert later.seconds < 50
