"""Which layers M-TIES ranks, and by what: every kind of layer against what its experts make."""

import copy
import re

import pytest
import torch
from test_m_ties import pre_activations, weights_of
from torch import nn
from torch.nn import functional

from lightning_merge.core.errors import InputError
from lightning_merge.methods import MTies, Resources

FIRST = {
    "grouped": ([nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)], (4, 5, 5)),
    "depthwise": ([nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4)], (4, 5, 5)),
    "strided": ([nn.Conv2d(4, 6, 3, 2, padding=1, padding_mode="reflect")], (4, 5, 5)),
    "one dimension": ([nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6, affine=False)], (4, 7)),
    "three dimensions": ([nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)], (2, 3, 3, 3)),
    "linear": ([nn.Linear(4, 6), nn.BatchNorm1d(6)], (4,)),
    "linear without": ([nn.Linear(4, 6)], (3, 4)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"reduce": "square"}, {"activation": "silu"}])
@pytest.mark.parametrize("kind", FIRST)
def test_every_kind_of_layer_is_ranked_by_what_the_experts_make_of_it(
    kind, options, dtype, make_experts
):
    modules, shape = FIRST[kind]
    net = nn.Sequential(*copy.deepcopy(modules), nn.ReLU(inplace=True)).eval()
    base = {n: t + 0.1 if t.is_floating_point() else t for n, t in weights_of(net).items()}
    experts = make_experts(3, base)
    for expert in experts.values():
        expert.update({n: t.abs() for n, t in expert.items() if n.endswith("running_var")})
    images = torch.randn(6, *shape).to(dtype)
    model = copy.deepcopy(net).to(dtype)  # weights stay as they are stored
    analysis = MTies(**options).analyse(base, experts, Resources(model=model, batches=images))
    hidden = []
    for expert in experts.values():
        net.load_state_dict(expert)
        with torch.no_grad():
            made = net[:-1](images.float())
        hidden.append(made if "linear" in kind else made.movedim(1, -1))
    stack = torch.stack(hidden).flatten(1, -2)
    act = functional.silu if "activation" in options else functional.relu
    difference = act(stack.mean(0)) - act(stack).mean(0)
    want = difference.square() if "reduce" in options else difference.abs()
    torch.testing.assert_close(analysis.losses["0.weight"], want.mean(0), rtol=1e-4, atol=1e-7)


class Functional(nn.Module):
    """A convolution whose activation is a function, behind a BatchNorm that may be it itself."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), norm
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(functional.relu(self.norm(self.conv(x))).mean((2, 3)))


def test_batch_norm_belongs_to_a_layer_that_is_named(make_experts):
    net = Functional(nn.BatchNorm2d(4)).eval()
    base = weights_of(net)
    experts = make_experts(3, base)
    for expert in experts.values():
        expert["norm.running_var"] = expert["norm.running_var"].abs()
    images = torch.randn(6, 3, 5, 5)
    method = MTies(layers=["conv"], activation="relu")
    losses = method.analyse(base, experts, Resources(model=net, batches=images)).losses
    hidden = torch.stack(
        [pre_activations(net, e, "conv", "norm", images) for e in experts.values()]
    )
    want = (hidden.mean(0).relu() - hidden.relu().mean(0)).abs().mean(0)
    torch.testing.assert_close(losses["conv.weight"], want)


def test_layers_that_have_no_nodes_to_rank_are_left_out_or_refused(make_experts):
    from torch.nn.utils.parametrizations import weight_norm

    images = torch.randn(4, 3, 6, 6)
    parts = [nn.ConvTranspose2d(3, 3, 2), nn.ReLU(), weight_norm(nn.Conv2d(3, 4, 2)), nn.ReLU()]
    net = nn.Sequential(*parts, nn.Conv2d(4, 5, 2), nn.ReLU())
    base = weights_of(net)
    call = (base, make_experts(2, base))
    losses = MTies().analyse(*call, Resources(model=net, batches=images)).losses
    assert list(losses) == ["4.weight"]
    other = Functional(nn.BatchNorm2d(4, track_running_stats=False))
    base = weights_of(other)
    unsure = (base, make_experts(2, base))
    for model, layer, weights in ((net, "0", call), (net, "2", call), (other, "conv", unsure)):
        with pytest.raises(InputError, match=f"layers: '{layer}' is not a linear or convolutional"):
            MTies(layers=[layer], activation="relu")(*weights, model=model, batches=images)


@pytest.mark.parametrize(
    ("net", "layers", "remedy"),
    [
        (nn.Linear(3, 2), None, "name layers such as 0, and the activation"),
        (nn.ConvTranspose1d(3, 2, 1), None, "none could be ranked under any option"),
        (nn.ConvTranspose1d(3, 2, 1), ["0"], "none could be ranked under any option"),
    ],
)
def test_nothing_to_rank_has_a_way_out(net, layers, remedy, make_experts):
    net = nn.Sequential(net)
    base = weights_of(net)
    given = re.escape(f"layers={layers!r}: no linear")
    with pytest.raises(InputError, match=f"{given} or .*; {remedy}"):
        MTies(layers=layers, activation="relu" if layers else None)(
            base, make_experts(2, base), model=net, batches=torch.randn(4, 3, 3)
        )


def split(model):
    """A copy of one of timm's networks with plain BatchNorm and activation modules."""
    from timm.layers import BatchNormAct2d

    other, names = copy.deepcopy(model), {}
    for name, norm in [*other.named_modules()]:
        if isinstance(norm, BatchNormAct2d):
            parts = nn.Sequential(nn.BatchNorm2d(norm.num_features, eps=norm.eps), norm.act)
            other.set_submodule(name, parts)
            names |= {f"{name}.{own}": f"{name}.0.{own}" for own in norm.state_dict()}
    return other.eval(), names


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_050"])
def test_timms_fused_layers_merge_to_the_bits_of_plain_ones(name, make_experts):
    import timm

    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0).eval()
    base = weights_of(net)
    experts = make_experts(2, base)
    for expert in experts.values():
        expert.update({n: t.abs() for n, t in expert.items() if n.endswith("running_var")})
    other, names = split(net)
    images = torch.randn(2, 3, 32, 32)
    fused = MTies().analyse(base, experts, Resources(net, images))
    base, *rest = (
        {names.get(n, n): t for n, t in weights.items()} for weights in (base, *experts.values())
    )
    plain = MTies().analyse(base, dict(zip(experts, rest, strict=True)), Resources(other, images))
    assert list(fused.losses) == list(plain.losses)
    for layer, loss in fused.losses.items():
        assert torch.equal(loss, plain.losses[layer])
        assert torch.equal(fused.keep_ratios[layer], plain.keep_ratios[layer])
    assert {names.get(n, n) for n in fused.merged} == set(plain.merged)
    for own, tensor in fused.merged.items():
        assert torch.equal(tensor, plain.merged[names.get(own, own)])


def test_relu6_by_name_is_that_of_the_module(make_experts):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU6()).eval()
    base = weights_of(net) | {"0.bias": torch.full((4,), 6.0)}  # at the upper kink
    experts = make_experts(2, base)
    resources = Resources(net, torch.randn(99, 3))
    named = MTies(activation="relu6").analyse(base, experts, resources)
    own = MTies().analyse(base, experts, resources)
    relu = MTies(activation="relu").analyse(base, experts, resources)
    assert torch.equal(named.losses["0.weight"], own.losses["0.weight"])
    assert not torch.equal(relu.losses["0.weight"], own.losses["0.weight"])


def test_a_row_that_no_tile_holds_is_refused(make_experts, monkeypatch):
    monkeypatch.setattr("lightning_merge.core.vectors.tiles.TILE", 60)
    net = nn.Sequential(nn.Conv1d(8, 4, 5), nn.ReLU())
    base = weights_of(net)
    with pytest.raises(
        InputError, match=r"0.weight: a row of 40 entries of each of 3 .* a tile of 60"
    ):
        MTies()(base, make_experts(3, base), model=net, batches=torch.randn(4, 8, 9))
