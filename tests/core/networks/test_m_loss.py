"""M-Loss against plain formulas, the published code, and its expectation by simulation."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

import lightning_merge
from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.m_loss import (
    ACTIVATIONS,
    expected_m_loss,
    layer_m_loss,
    linear_node_m_loss,
    m_losses,
    node_m_loss,
    rank_normalize,
    row_keep_ratios,
)


@pytest.fixture
def hidden():
    return torch.randn(3, 50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3]])
@pytest.mark.parametrize("normalized", [False, True])
def test_plain_formulas(name, weights, normalized, hidden):
    act = ACTIVATIONS[name]
    a = weights or [1 / 3] * 3
    given = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    node_abs, node_square, layer = torch.zeros(7), torch.zeros(7), 0.0
    for i in range(50):
        merged = act(sum(a[k] * hidden[k, i] for k in range(3)))
        loss = merged - sum(a[k] * act(hidden[k, i]) for k in range(3))
        scaled = loss / (merged.abs() + 1e-4) if normalized else loss
        node_abs = node_abs + scaled.abs() / 50
        node_square = node_square + scaled**2 / 50
        norm = (loss**2).sum().sqrt()
        layer += (norm / ((merged**2).sum().sqrt() + 1e-4) if normalized else norm) / 50
    options = {"weights": given, "normalized": normalized}
    torch.testing.assert_close(node_m_loss(hidden, act, **options), node_abs)
    torch.testing.assert_close(node_m_loss(hidden, act, reduce="square", **options), node_square)
    torch.testing.assert_close(layer_m_loss(hidden, act, **options), layer)


def test_layer_squared_is_the_sum_of_nodes_squared_per_sample(hidden):
    for sample in hidden.split(1, dim=1):
        nodes = node_m_loss(sample, functional.gelu)
        torch.testing.assert_close(
            nodes.square().sum().sqrt(), layer_m_loss(sample, functional.gelu)
        )


def test_no_loss_for_equal_experts_and_linear_activations(hidden):
    assert node_m_loss(hidden[:1], torch.tanh).max() == 0
    assert node_m_loss(hidden[:1].expand(4, -1, -1), torch.tanh).max() < 1e-15
    assert node_m_loss(hidden, lambda x: 2 * x).max() < 1e-15


@pytest.mark.parametrize("reduce", ["abs", "square"])
@pytest.mark.parametrize("biases", [True, False])
def test_linear_layer_in_chunks(reduce, biases, monkeypatch):
    torch.manual_seed(0)
    x, w = torch.randn(23, 5), torch.randn(3, 4, 5)
    b = torch.randn(3, 4) if biases else None
    hidden = torch.stack([functional.linear(x, w[k], b[k] if biases else None) for k in range(3)])
    monkeypatch.setattr("lightning_merge.core.networks.m_loss._CHUNK", 3 * 4 * 6)
    got = linear_node_m_loss(x, w, b, functional.gelu, reduce)
    torch.testing.assert_close(got, node_m_loss(hidden, functional.gelu, reduce=reduce))


@pytest.mark.parametrize("loss", [node_m_loss, layer_m_loss])
def test_gradients(loss, hidden):
    hidden = hidden[:, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda h: loss(h, torch.tanh), hidden)


VARIATIONS = {  # METHODS: total variation of the derivative
    "relu": (functional.relu, 1.0),
    "gelu": (functional.gelu, 1.51562),
    "quick_gelu": (ACTIVATIONS["quick_gelu"], 1.39936),
    "leaky": (nn.LeakyReLU(0.1), 0.9),
    "silu": (functional.silu, 1.39936),
    "relu6": (functional.relu6, 2.0),  # up at 0, down at 6
    "hardswish": (functional.hardswish, 3.0),  # to -1/2 at -3, to 3/2 at 3, to 1
    "tanh": (torch.tanh, 2.0),  # up to 1 at 0, and down again
    "none": (nn.Identity(), 0.0),
}


TOLERANCES = {"hardswish": 3e-4}  # a second difference over a kink has the curve beside it, too


@pytest.mark.parametrize("name", VARIATIONS)
def test_expectation_is_that_of_the_total_variation(name):
    activation, variation = VARIATIONS[name]
    for sigma, k, experts in ((0.2, 8.0, 2), (0.05, 3.0, 7), (0.2, 8.0, 1)):
        expected = (1 - 1 / experts) * variation * sigma**2 / (4 * k)
        given = expected_m_loss(activation, sigma, k, experts)
        assert given == pytest.approx(expected, rel=TOLERANCES.get(name, 1e-5), abs=1e-15)
        if name in ACTIVATIONS:
            assert expected_m_loss(name, sigma, k, experts) == given


@pytest.mark.parametrize(
    ("name", "k"),  # so wide that the activation bends no more outside
    [
        ("relu", 1),
        ("leaky", 1),
        ("gelu", 6),
        ("quick_gelu", 8),
        ("gelu_tanh", 6),
        ("silu", 12),
        ("relu6", 8),
    ],
)
@pytest.mark.parametrize("experts", [2, 3, 8])
def test_expectation_by_simulation(name, k, experts):
    """Experts' pre-activations x + N(0, s^2), x evenly over (-k, k)."""
    activation = {**ACTIVATIONS, "leaky": nn.LeakyReLU(0.1)}[name]
    generator, sigma, samples = torch.Generator().manual_seed(0), 0.1, 400_000
    x = torch.linspace(-k, k, samples).view(1, -1, 1)
    total = 0.0
    for _ in range(2):
        noise = torch.randn(experts, samples, 1, generator=generator)
        total += node_m_loss(x + sigma * noise, activation).item() / 2
    assert total == pytest.approx(expected_m_loss(activation, sigma, k, experts), rel=0.01)


def test_of_a_kink_against_the_curve_beside_it_the_expectation_is_a_limit():
    """Hardswish is concave at -3 and 3 and convex between: both cancel within sigma of a kink."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-8, 8, 400_000).view(1, -1, 1)
    errors = []
    for sigma in (0.2, 0.05):
        noise = torch.randn(2, 400_000, 1, generator=generator)
        found = node_m_loss(x + sigma * noise, functional.hardswish).item()
        errors.append(1 - found / expected_m_loss("hardswish", sigma, 8.0))
    assert 0 < errors[1] < 0.05 < errors[0] < 0.2


@pytest.mark.parametrize(
    ("activation", "constant"),
    [
        ("relu", 1 / math.sqrt(2 * math.pi)),
        (nn.ReLU(), 1 / math.sqrt(2 * math.pi)),
        (nn.LeakyReLU(0.2), 0.8 / math.sqrt(2 * math.pi)),
        ("gelu", 0.25),
        (nn.GELU(), 0.25),
    ],
)
def test_the_papers_constants_are_too_large(activation, constant):
    given = expected_m_loss(activation, sigma=0.3, k=5, paper=True)
    assert given == pytest.approx(constant * 0.3**2 / 5)
    assert given > 1.3 * expected_m_loss(activation, sigma=0.3, k=5)


def test_expectation_is_exported():
    assert lightning_merge.expected_m_loss is expected_m_loss
    with pytest.raises(AttributeError, match="no attribute 'unexpected_m_loss'"):
        _ = lightning_merge.unexpected_m_loss


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "relux"}, "activation='relux': choose one of gelu"),
        ({"sigma": -1}, "sigma=-1"),
        ({"k": 0}, "k=0"),
        ({"k": math.nan}, "k=nan"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"paper": True, "num_experts": 3}, "num_experts=3: the paper covers 2"),
        ({"paper": True, "activation": "quick_gelu"}, "the paper covers relu"),
    ],
)
def test_expectations_that_there_are_not(changes, message):
    with pytest.raises(InputError, match=message):
        expected_m_loss(**{"activation": "relu", "sigma": 0.1, "k": 3, **changes})


@pytest.mark.parametrize("eps", [1e-4, 0.1])
def test_all_losses_at_once(hidden, eps):
    outputs = torch.tanh(hidden)
    found = m_losses(torch.tanh(hidden.mean(0)), outputs.mean(0), eps)
    for normalized, node, layer in (
        (False, found.node, found.layer),
        (True, found.node_normalized, found.layer_normalized),
    ):
        options = {"normalized": normalized, "eps": eps}
        torch.testing.assert_close(node, node_m_loss(hidden, torch.tanh, **options))
        torch.testing.assert_close(layer, layer_m_loss(hidden, torch.tanh, **options))
    norms = [torch.tanh(sample.mean(0)).square().sum().sqrt() for sample in hidden.unbind(1)]
    torch.testing.assert_close(found.norm, sum(norms) / 50)
    relative = layer_m_loss(hidden, torch.tanh) / (sum(norms) / 50 + 1e-4)
    torch.testing.assert_close(found.layer_relative, relative)


def test_relative_and_normalised_losses_agree_where_norms_do(hidden):
    """And a sample at which the merged layer gives nothing counts as any other."""
    sample = hidden[:, :1].expand(-1, 5, -1)
    one = m_losses(sample.mean(0).relu(), sample.relu().mean(0))
    torch.testing.assert_close(one.layer_relative, one.layer_normalized)
    off = torch.tensor([-1.0, -1.0, 1.0]).view(3, 1, 1).expand(3, 1, 7)  # their mean is below 0
    both = torch.cat([sample, off], 1)
    found = m_losses(both.mean(0).relu(), both.relu().mean(0))
    assert found.layer_normalized > 1000
    expected = (5 * one.layer + 7**0.5 / 3) / (5 * one.norm + 6e-4)
    torch.testing.assert_close(found.layer_relative, expected)


@pytest.mark.shared
@pytest.mark.parametrize("block", range(4))
def test_published_losses(block, shared):
    fixtures = shared / "fixtures"
    want = load_file(fixtures / "expected" / "mties_node_losses.safetensors")
    experts = [load_file(path) for path in sorted((fixtures / "zoo").glob("expert_*"))]
    name = f"model.visual.transformer.resblocks.{block}.mlp.c_fc"
    inputs = want[f"input.{block}"]  # [tokens, images, features]
    weights = torch.stack([e[f"{name}.weight"] for e in experts])
    biases = torch.stack([e[f"{name}.bias"] for e in experts])
    tanh_gelu = ACTIVATIONS["gelu_tanh"]
    nodes = linear_node_m_loss(inputs.flatten(0, 1), weights, biases, tanh_gelu, "square")
    torch.testing.assert_close(nodes, want[f"node_msq_gelutanh.{block}"], rtol=0, atol=1e-6)
    hidden = torch.einsum("tif,kdf->kitd", inputs, weights) + biases[:, None, None]
    for key, normalized in (("layer_l2", False), ("layer_l2_norm", True)):
        # The published norm is over all tokens of an image: one sample of tokens x nodes.
        per_image = [
            layer_m_loss(hidden[:, i].flatten(1)[:, None], functional.gelu, normalized=normalized)
            for i in range(inputs.shape[1])
        ]
        torch.testing.assert_close(
            torch.stack(per_image), want[f"{key}.{block}"], rtol=0, atol=1e-6
        )


@pytest.mark.shared
def test_published_ranks_and_ratios(shared):
    want = load_file(shared / "fixtures" / "expected" / "mties_rank_scale.safetensors")
    close = {"rtol": 0, "atol": 1e-6, "check_dtype": False}
    torch.testing.assert_close(rank_normalize(want["loss"]), want["rank"], **close)
    ratios = row_keep_ratios(want["loss"], keep=0.2, spread=0.1)
    torch.testing.assert_close(ratios, want["keep_k0.2_e0.1"], **close)


@pytest.mark.parametrize(
    ("loss", "ranks"),
    [([3.0, 1.0, 2.0], [1, 0, 0.5]), ([5.0], [0]), ([], []), ([1.0, 1.0], [1, 0])],
)
def test_rank_normalize(loss, ranks):
    assert rank_normalize(torch.tensor(loss)).tolist() == ranks


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: node_m_loss(h, torch.tanh, torch.ones(2)), r"weights of shape \[2\]"),
        (lambda h: row_keep_ratios(h[0, 0], 0.1, 0.2), "spread=0.2"),
        (lambda h: row_keep_ratios(h[0, 0], 1.2, 0.2), "keep=1.2"),
        (lambda h: row_keep_ratios(h[0, 0] * torch.nan, 0.2, 0.1), "NaN"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(InputError, match=message):
        call(torch.ones(3, 4, 5))
