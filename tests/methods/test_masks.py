"""Buffers of infinity that are the same everywhere are copied, in every route."""

import math

import pytest
import torch
from conftest import TinyNet
from test_laws import ALONE, BEHIND, make  # noqa: F401

from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.mergeability import mergeability
from lightning_merge.core.vectors.coefficients import StackedTaskVectors
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.methods import EMR, Average, Ensemble, Surgery

every = pytest.mark.parametrize("make", ALONE + BEHIND, indirect=True)
CAUSAL = torch.full((4, 4), -math.inf).triu(1)


class MaskedNet(TinyNet):
    """The tiny network with a causal mask among its persistent buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", CAUSAL.clone())

    def forward(self, x):
        out = super().forward(x)
        return out + torch.softmax(self.mask, -1)[0]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return MaskedNet()


@pytest.fixture
def make_experts(make_experts):
    """Experts with the base's mask."""
    return lambda number: {
        t: {**e, "mask": CAUSAL.clone()} for t, e in make_experts(number).items()
    }


def without(weights):
    return {name: tensor for name, tensor in weights.items() if name != "mask"}


@every
@pytest.mark.parametrize("scope", ["all", "changed"])
def test_methods_copy_it_and_merge_the_rest_as_without_it(
    make,  # noqa: F811
    scope,
    base,
    make_experts,
    resources,
):
    experts, method = make_experts(3), make()
    merged = method(base, experts, scope=scope, **resources)
    assert torch.equal(merged["mask"], CAUSAL)
    if not method.requirements().needs:
        want = method(without(base), {t: without(e) for t, e in experts.items()}, scope=scope)
        assert all(torch.equal(merged[name], tensor) for name, tensor in want.items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("model", ["base", "task1"])
def test_infinity_in_one_model_alone_is_an_error(model, value, base, make_experts):
    models = {"base": base, **make_experts(3)}
    models[model]["mask"] = CAUSAL.clone()
    models[model]["mask"][3, 0] = value
    weights = models.pop("base")
    with pytest.raises(InputError, match="mask"):
        Average()(weights, models)


@pytest.mark.parametrize(
    "method", [EMR(), Ensemble(), Surgery(steps=3)], ids=lambda m: type(m).__name__
)
def test_networks_for_tasks_have_it(method, base, make_experts, resources):
    network = method(base, make_experts(3), **resources)
    x = torch.randn(5, 6)
    for task in ("task0", "task2"):
        assert bool(network.logits(task, x, resources["heads"][task]).isfinite().all())


def test_learned_coefficients_leave_it_alone(base, make_experts):
    vectors = TaskVectors(base, make_experts(3))
    assert "mask" not in vectors.names
    stacked = StackedTaskVectors(vectors)
    coefficients = torch.full((3, len(stacked.names)), 0.3, requires_grad=True)
    merged = stacked.merge(coefficients)
    assert torch.equal(merged["mask"], CAUSAL)
    sum(merged[name].sum() for name in stacked.names).backward()
    assert bool(coefficients.grad.isfinite().all())
    assert torch.equal(vectors.stored.stack("mask")[1], CAUSAL)
    assert torch.equal(vectors.expert("mask", 1), CAUSAL)


def test_m_loss_runs_the_network_with_it(net, base, make_experts):
    found = mergeability(base, make_experts(2), net, torch.randn(8, 6))
    assert math.isfinite(found.overall)
