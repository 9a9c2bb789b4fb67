"""Which layers M-TIES ranks, and by what: every kind of layer against what its experts make."""

import copy

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
    from timm.layers import BatchNormAct2d
    from torch.nn.utils.parametrizations import weight_norm

    images = torch.randn(4, 3, 6, 6)
    parts = [nn.ConvTranspose2d(3, 3, 2), nn.ReLU(), weight_norm(nn.Conv2d(3, 4, 2)), nn.ReLU()]
    net = nn.Sequential(*parts, nn.Conv2d(4, 5, 2), nn.ReLU())
    base = weights_of(net)
    call = (base, make_experts(2, base))
    losses = MTies().analyse(*call, Resources(model=net, batches=images)).losses
    assert list(losses) == ["4.weight"]
    other = Functional(BatchNormAct2d(4))
    base = weights_of(other)
    fused = (base, make_experts(2, base))
    for model, layer, weights in ((net, "0", call), (net, "2", call), (other, "conv", fused)):
        with pytest.raises(InputError, match=f"layers: '{layer}' is not a linear or convolutional"):
            MTies(layers=[layer], activation="relu")(*weights, model=model, batches=images)


def test_a_row_that_no_tile_holds_is_refused(make_experts, monkeypatch):
    monkeypatch.setattr("lightning_merge.core.vectors.tiles.TILE", 60)
    net = nn.Sequential(nn.Conv1d(8, 4, 5), nn.ReLU())
    base = weights_of(net)
    with pytest.raises(
        InputError, match=r"0.weight: a row of 40 entries of each of 3 .* a tile of 60"
    ):
        MTies()(base, make_experts(3, base), model=net, batches=torch.randn(4, 8, 9))
