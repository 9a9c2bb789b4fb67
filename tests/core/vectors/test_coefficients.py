"""Merging with coefficients against the Python sum theta_0 + sum_k c_kl tau_kl."""

import gc
import weakref

import pytest
import torch
from torch import nn

from lightning_merge.core.vectors.coefficients import StackedTaskVectors
from lightning_merge.core.vectors.task_vectors import TaskVectors

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


@pytest.mark.parametrize("scale", [1.0, 2.0**12])
def test_the_loss_has_the_gradient_of_the_merge(case, scale):
    *_, stacked, coefficients = case
    target = {name: torch.randn_like(tensor) for name, tensor in stacked.base.items()}

    def of(weights):
        return sum((weights[name] - t).square().sum() for name, t in target.items())

    (expected,) = torch.autograd.grad(3 * of(stacked.merge(coefficients)), coefficients)
    loss = stacked.loss(coefficients, of, scale=scale)
    torch.testing.assert_close(loss, of(stacked.merge(coefficients)).detach())
    (3 * loss).backward()
    torch.testing.assert_close(coefficients.grad, expected, rtol=1e-4, atol=1e-4)


def test_the_loss_keeps_one_gradient_at_a_time(case):
    """When a tensor gets its gradient, those of the tensors used after it are gone."""
    *_, stacked, coefficients = case
    merged, held = {}, []

    def of(weights):
        merged.update(weights)
        total = coefficients.new_zeros(())
        for name in stacked.names:
            total = total + weights[name].square().sum() + total.square()
            weights[name].register_hook(
                lambda _: held.append(sum(t.grad is not None for t in merged.values()))
            )
        return total

    stacked.loss(coefficients, of)
    assert held == [0] * len(stacked.names)
    assert all(t.grad is None for t in merged.values())


def test_a_tensor_without_influence_gets_no_gradient(case):
    *_, stacked, coefficients = case
    first, *others = stacked.names
    loss = stacked.loss(coefficients, lambda weights: weights[first].square().sum())
    (gradient,) = torch.autograd.grad(loss, coefficients)
    assert (gradient[:, 0] != 0).all()
    assert (gradient[:, 1:] == 0).all()
    assert others


def test_offloaded_stacks_give_the_same(case):
    base, experts, stacked, coefficients = case
    other = StackedTaskVectors(TaskVectors(base, experts), offload=True).to("cpu")

    def gradient(vectors):
        loss = vectors.loss(coefficients, lambda w: sum(w[n].sum() ** 2 for n in stacked.names))
        return torch.autograd.grad(loss, coefficients)[0]

    assert torch.equal(gradient(other), gradient(stacked))


def test_offloaded_stacks_stay_on_the_host():
    base, experts = weights(0), {"a": weights(1), "b": weights(2)}
    stacked = StackedTaskVectors(TaskVectors(base, experts), offload=True).to("meta")
    assert {t.device.type for t in stacked.stacks.values()} == {"cpu"}
    assert {t.device.type for t in (*stacked.base.values(), *stacked.fixed.values())} == {"meta"}


def test_a_network_can_share_the_base(case):
    base, _, stacked, _ = case
    module = network()
    module.load_state_dict(base)
    stacked.share(dict(module.named_parameters()))
    for name, parameter in module.named_parameters():
        assert parameter.data_ptr() == stacked.base[name].data_ptr()
        assert torch.equal(parameter, base[name])


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


def test_buffers_and_tied_weights_do_not_matter_to_sharing():
    module = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    module["b"].weight = module["a"].weight
    module.register_buffer("scale", torch.ones(3))
    base = module.state_dict()
    expert = {name: tensor + 1 for name, tensor in base.items()}
    stacked = StackedTaskVectors(TaskVectors(base, {"one": expert}, scope="changed"))
    stacked.share(dict(module.named_parameters(remove_duplicate=False)))
    assert torch.equal(module["b"].weight, base["b.weight"])
    assert module["a"].bias.data_ptr() == stacked.base["a.bias"].data_ptr()


def test_one_stack_is_sent_at_a_time(case):
    *_, stacked, coefficients = case
    alive, sent = weakref.WeakSet(), []
    send = stacked._stack

    def counted(name):
        gc.collect()
        sent.append(len(alive))
        alive.add(copy := send(name).clone())
        return copy

    stacked._stack = counted
    stacked.merge(coefficients.detach())
    assert sent == [0] * len(stacked.names)
