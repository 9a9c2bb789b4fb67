"""Statistics of BatchNorm against the formulas of mean and variance, and torch's training mode."""

import pytest
import torch
from torch import nn

from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.batch_norm import (
    batch_statistics,
    has_batch_norm,
    recalibrated,
    statistics_differ,
)

SIZES = (5, 2, 17)


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Dropout(dropout),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6, momentum=None),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 5),
        nn.BatchNorm1d(5),
    )


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return [(i + 1) * torch.randn(n, 3, 8, 8, generator=generator) for i, n in enumerate(SIZES)]


def merged(model: nn.Module) -> dict[str, torch.Tensor]:
    """Other weights than the model's own."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: t + 0.1 * torch.rand(t.shape, generator=generator) if t.is_floating_point() else t
        for name, t in model.state_dict().items()
    }


def test_the_statistics_are_those_of_all_images_however_they_are_batched(batches):
    model = network()
    weights = merged(model)
    found = recalibrated(model, weights, iter(batches))
    values = nn.functional.conv2d(torch.cat(batches).double(), weights["0.weight"].double())
    values = values + weights["0.bias"].double().view(4, 1, 1)
    n = values.numel() / 4
    mean = values.sum((0, 2, 3)) / n
    variance = ((values**2).sum((0, 2, 3)) / n - mean**2) * n / (n - 1)
    torch.testing.assert_close(found["2.running_mean"].double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["2.running_var"].double(), variance, rtol=1e-5, atol=1e-5)
    assert found["2.running_var"].dtype == torch.float32


def test_tied_weights_may_be_given_as_copies(batches):
    one = network()
    two = nn.Sequential(one, network())
    two[1][0].weight = one[0].weight
    weights = {name: t.clone() for name, t in two.state_dict().items()}
    two.forward = lambda x: (one(x), two[1](x))
    found = recalibrated(two, weights, batches)
    for part in (0, 1):
        alone = {n.removeprefix(f"{part}."): t for n, t in weights.items() if n[0] == str(part)}
        for name, tensor in recalibrated(two[part], alone, batches).items():
            assert torch.equal(found[f"{part}.{name}"], tensor)


def test_every_image_counts_alike_in_layers_above_too(batches):
    """A layer's statistics are the pooled ones of its batches, each normalised by its own."""
    model = network()
    weights = merged(model)
    found = recalibrated(model, weights, batches)
    model.load_state_dict(weights)
    seen = []
    model[5].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    pooled = torch.cat(seen).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found["5.running_mean"], pooled.mean(1))
    torch.testing.assert_close(found["5.running_var"], pooled.var(1))
    # torch's own cumulative average counts batches alike, so a small one weighs too much.
    assert not torch.allclose(model[5].running_mean, found["5.running_mean"], rtol=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_of_one_batch_they_are_those_of_training_mode_without_dropout(batches, dropout):
    model = network(dropout)
    weights = merged(model)
    found = recalibrated(model, weights, batches[2:])
    plain = network()
    plain.load_state_dict(weights)
    for layer in (plain[2], plain[5], plain[9]):
        layer.momentum = 1.0
    plain.train()(batches[2])
    expected = plain.state_dict()
    for name, tensor in found.items():
        if "running" in name:
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert tensor is weights[name]


def test_evaluation_then_normalises_these_images(batches):
    model = network()
    weights = merged(model)
    model.load_state_dict(recalibrated(model, weights, batches))
    out = model.eval()[:3](torch.cat(batches)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(out.mean(1), weights["2.bias"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.std(1), weights["2.weight"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_weights_are_left_alone(batches, fails):
    model = network(0.5).train()
    model[2].eval()
    weights = merged(model)
    kept = {name: t.clone() for name, t in weights.items()}
    before = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    if fails:
        with pytest.raises(RuntimeError, match="shapes"):
            recalibrated(model, weights, [*batches, torch.zeros(2, 3, 9, 9)])
    else:
        recalibrated(model, weights, batches)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(torch.equal(t, kept[name]) for name, t in weights.items())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_statistics_are_typed_as_the_weights(batches, dtype):
    model = network()
    weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in merged(model).items()}
    images = [b.double() if dtype == torch.float64 else b for b in batches]
    found = recalibrated(model, weights, images)
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in weights.items()}
    widened = {n: t.float() if t.is_floating_point() else t for n, t in weights.items()}
    exact = recalibrated(model, widened, batches)
    for name, tensor in exact.items():
        torch.testing.assert_close(found[name], tensor.to(found[name].dtype), rtol=1e-4, atol=1e-5)


def test_a_layer_that_no_input_reaches_keeps_its_statistics(batches):
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, images):
            return self.used(images)

    model = Partly()
    weights = merged(model)
    found = recalibrated(model, weights, batches)
    assert torch.equal(found["idle.running_mean"], weights["idle.running_mean"])
    torch.testing.assert_close(found["used.running_mean"], torch.cat(batches).mean((0, 2, 3)))


@pytest.mark.parametrize("active", [True, False])
def test_layers_normalise_by_their_batch_where_asked(batches, active):
    model = network(0.5).eval()
    model[5].train()
    modes = [module.training for module in model.modules()]
    with batch_statistics(model, active):
        inside = [module.training for module in model]
    layers = [isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in model]
    assert inside == (layers if active else modes[1:])
    assert [module.training for module in model.modules()] == modes


def test_which_models_have_statistics():
    assert has_batch_norm(network())
    assert has_batch_norm(nn.BatchNorm1d(3))
    assert not has_batch_norm(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.GroupNorm(1, 3)))
    assert not has_batch_norm(nn.BatchNorm2d(3, track_running_stats=False))


def test_bad_input(batches):
    model = network()
    weights = merged(model)
    with pytest.raises(InputError, match="give some images"):
        recalibrated(model, weights, [])
    with pytest.raises(InputError, match=r"layer '9' gets one value.*two images"):
        recalibrated(model, weights, [batches[0][:1]])
    with pytest.raises(RuntimeError, match=r"4\.bias"):
        recalibrated(model, {n: t for n, t in weights.items() if n != "4.bias"}, batches)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_an_expert_keeps_statistics_in_whatever_type_it_is_stored(dtype):
    """The base is opened in float32, experts as they are stored."""
    model = network()
    base = {name: t + 0.1 if t.is_floating_point() else t for name, t in merged(model).items()}
    kept = {name: t.to(dtype) if t.is_floating_point() else t for name, t in base.items()}
    assert not statistics_differ(model, base, [kept, base])
    moved = {**kept, "5.running_var": 1.02 * kept["5.running_var"]}
    assert statistics_differ(model, base, [base, moved])
