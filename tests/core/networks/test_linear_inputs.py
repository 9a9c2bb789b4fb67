"""What is shown as a weight's inputs gives the layer's output when multiplied by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_merge.core.networks.linear_inputs import LinearInputs

CONVOLUTIONS = [
    pytest.param(nn.Conv1d, {"padding": 2, "stride": 2}, id="1d"),
    pytest.param(nn.Conv2d, {"padding": (0, 2), "stride": (2, 1)}, id="2d"),
    pytest.param(nn.Conv2d, {"padding": "same", "dilation": (1, 3)}, id="same"),
    pytest.param(nn.Conv2d, {"padding": "valid", "groups": 2}, id="groups"),
    pytest.param(nn.Conv2d, {"padding": 1, "padding_mode": "reflect"}, id="reflect"),
    pytest.param(nn.Conv3d, {"dilation": 2}, id="3d"),
]


def shown(model, *inputs, **options):
    """The rows of every weight, and the model's output."""
    seen = {}
    with torch.no_grad(), LinearInputs(dict(model.named_parameters()), seen.__setitem__):
        return seen, model(*inputs, **options)


@pytest.mark.parametrize(("kind", "options"), CONVOLUTIONS)
def test_convolutions(kind, options):
    dims = int(kind.__name__[4])
    layer = kind(4, 6, (3, 5, 3)[:dims], **options)
    images = torch.randn(2, 4, 9, 10, 7)[(..., *[0] * (3 - dims))]
    seen, output = shown(layer, images)
    groups = layer.weight.chunk(layer.groups)
    parts = [x @ w.flatten(1).T for x, w in zip(seen["weight"], groups, strict=True)]
    want = output.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(torch.cat(parts, -1) + layer.bias, want)


def test_linear_layer_and_function():
    layer, tokens = nn.Linear(4, 3), torch.randn(2, 5, 4)
    seen, output = shown(layer, tokens)
    assert torch.equal(seen["weight"][0], tokens.flatten(0, 1))
    assert torch.equal(output, layer(tokens))
    with LinearInputs({"w": layer.weight}, lambda name, rows: seen.update({name: rows})):
        functional.linear(tokens[0], layer.weight)
        functional.linear(tokens, layer.weight.clone())  # another tensor
    assert torch.equal(seen["w"][0], tokens[0])


def attention(**options):
    layer = nn.MultiheadAttention(8, 2, **options).eval()
    for bias in (layer.in_proj_bias, layer.out_proj.bias):  # zero at first
        nn.init.normal_(bias)
    return layer


@pytest.mark.parametrize("batch_first", [True, False])
def test_self_attention(batch_first):
    layer = attention(batch_first=batch_first)
    tokens = torch.randn(3, 5, 8)
    seen, (output, _) = shown(layer, tokens, tokens, tokens, need_weights=False)
    torch.testing.assert_close(output, layer(tokens, tokens, tokens)[0])
    assert list(seen) == ["in_proj_weight", "out_proj.weight"]
    inside = tokens.transpose(0, 1) if batch_first else tokens
    assert torch.equal(seen["in_proj_weight"][0], inside.flatten(0, 1))
    projected = functional.linear(
        seen["out_proj.weight"][0], layer.out_proj.weight, layer.out_proj.bias
    )
    flat = output.transpose(0, 1) if batch_first else output
    torch.testing.assert_close(projected, flat.flatten(0, 1))


@pytest.mark.parametrize("width", [8, 6])
def test_cross_attention_shows_query_key_and_value_apart(width):
    layer = attention(kdim=width, vdim=width)
    query, key, value = torch.randn(2, 3, 8), torch.randn(5, 3, width), torch.randn(5, 3, width)
    seen, (output, shares) = shown(layer, query, key, value)
    want, weights = layer(query, key, value)
    torch.testing.assert_close((output, shares), (want, weights))
    names = [f"{letter}_proj_weight" for letter in "qkv"]
    rows = seen["in_proj_weight"] if width == 8 else [seen[name][0] for name in names]
    for got, part in zip(rows, (query, key, value), strict=True):
        assert torch.equal(got, part.flatten(0, 1))
