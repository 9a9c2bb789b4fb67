"""Merging with coefficients against the Python sum theta_0 + sum_k c_kl tau_kl."""

import pytest
import torch
from torch import nn

from lightning_merge.core.coefficients import StackedTaskVectors
from lightning_merge.core.task_vectors import TaskVectors

STATISTICS = ("1.running_mean", "1.running_var", "1.num_batches_tracked")


def network():
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))


def weights(number, dtype=torch.float32):
    """A state dict of random weights, statistics and a batch counter."""
    generator = torch.Generator().manual_seed(number)
    return {
        name: torch.rand(tensor.shape, generator=generator).to(dtype)
        if tensor.is_floating_point()
        else torch.tensor(number)
        for name, tensor in network().state_dict().items()
    }


def naive(base, experts, names, coefficients):
    merged = {}
    for column, name in enumerate(names):
        merged[name] = base[name].float()
        for row, expert in enumerate(experts.values()):
            tau = expert[name].float() - base[name].float()
            merged[name] = merged[name] + coefficients[row, column] * tau
    return merged


@pytest.fixture(params=[1, 2, 5], ids="K={}".format)
def case(request):
    base = weights(0)
    experts = {f"task{k}": weights(k + 1) for k in range(request.param)}
    stacked = StackedTaskVectors(TaskVectors(base, experts))
    generator = torch.Generator().manual_seed(9)
    coefficients = torch.rand(request.param, len(stacked.names), generator=generator)
    return base, experts, stacked, coefficients.requires_grad_()


def test_it_is_the_sum(case):
    base, experts, stacked, coefficients = case
    merged = stacked.merge(coefficients)
    expected = naive(base, experts, stacked.names, coefficients)
    assert set(merged) == set(base)
    assert not set(expected) & set(STATISTICS)
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value, atol=1e-6, rtol=1e-6)


def test_statistics_are_averaged_and_counters_copied(case):
    base, experts, stacked, coefficients = case
    merged = stacked.merge(coefficients)
    for name in STATISTICS[:2]:
        mean = sum(expert[name] for expert in experts.values()) / len(experts)
        torch.testing.assert_close(merged[name], mean)
    assert merged[STATISTICS[2]].dtype == torch.int64
    assert merged[STATISTICS[2]] == base[STATISTICS[2]]


def test_gradient_is_that_of_the_sum(case):
    base, experts, stacked, coefficients = case
    images = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(5))
    module = network().eval()

    def gradient(state):
        outputs = torch.func.functional_call(module, state, (images,), strict=True)
        (result,) = torch.autograd.grad(outputs.square().sum(), coefficients)
        return result

    fixed = {name: stacked.fixed[name] for name in STATISTICS}
    expected = gradient(naive(base, experts, stacked.names, coefficients) | fixed)
    assert expected.abs().min() > 0
    torch.testing.assert_close(
        gradient(stacked.merge(coefficients)), expected, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stored_half_precision_is_merged_in_float32(dtype):
    base, experts = weights(0, dtype), {"a": weights(1, dtype), "b": weights(2, dtype)}
    stacked = StackedTaskVectors(TaskVectors(base, experts))
    coefficients = torch.full((2, len(stacked.names)), 0.3)
    expected = naive(base, experts, stacked.names, coefficients)
    merged = stacked.merge(coefficients)
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value, atol=1e-6, rtol=1e-6)
    assert all(t.dtype == torch.float32 for t in merged.values() if t.is_floating_point())


def test_autocast_does_not_round_the_merge(case):
    *_, stacked, coefficients = case
    expected = stacked.merge(coefficients)
    with torch.autocast("cpu", torch.bfloat16):
        merged = stacked.merge(coefficients)
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_inputs_are_untouched(case):
    base, experts, stacked, coefficients = case
    for tensor in stacked.merge(coefficients.detach()).values():
        tensor.zero_()
    assert all(torch.equal(t, weights(0)[n]) for n, t in base.items())
    assert all(torch.equal(t, weights(1)[n]) for n, t in experts["task0"].items())
