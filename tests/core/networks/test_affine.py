"""Finding linear layers that feed an activation, and what counts as one."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct
from torch import nn

from lightning_merge.core.networks.affine import affine_chains, affine_layers, is_activation


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.GELU(), True),
        (nn.ReLU(inplace=True), True),
        (nn.Tanh(), True),
        (nn.LeakyReLU(0.9), True),
        (nn.Hardswish(), True),
        (nn.Hardsigmoid(), True),  # straight from -3 to 3
        (nn.ReLU6(inplace=True), True),
        (nn.SiLU(), True),
        (nn.Identity(), False),
        (nn.Dropout(0.5).eval(), False),
        (nn.Softmax(-1), False),
        (nn.LayerNorm(33, elementwise_affine=False), False),
        (nn.GLU(), False),
        (nn.Flatten(), False),
    ],
)
def test_what_is_an_activation(module, expected):
    assert is_activation(module) is expected


def test_finds_activated_layers_in_order():
    net = nn.Sequential(
        nn.Linear(3, 4),
        nn.Dropout(),
        nn.GELU(),  # dropout in between passes its input on in eval mode
        nn.Linear(4, 4),
        nn.Softmax(-1),
        nn.Linear(4, 5),
        nn.ReLU(inplace=True),
        nn.Linear(5, 2),
    )
    found = affine_layers(net, torch.randn(1, 3))
    assert [(layer.names, layer.activation) for layer in found] == [
        (("0",), net[2]),
        (("5",), net[6]),
    ]


def fused(norm, act=None):
    """A normalisation that computes its activation, with statistics of its own."""
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    if act is not None:
        norm.act = act
    return norm


class Scaled(BatchNormAct2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Shifted(BatchNormAct2d):
    def forward(self, x):
        return self.act(nn.BatchNorm2d.forward(self, x) - 0.5)


ACTS = [nn.ReLU(inplace=True), nn.ReLU6(), nn.SiLU(inplace=True), nn.Hardswish(), nn.GELU()]


@pytest.mark.parametrize("act", ACTS, ids=lambda act: type(act).__name__)
@pytest.mark.parametrize("kind", [BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d])
def test_a_normalisation_that_activates_is_batch_norm_and_its_activation(kind, act):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), fused(kind(4), copy.deepcopy(act)), nn.Conv2d(4, 2, 1))
    layer, last = affine_chains(net.eval(), torch.randn(1, 3, 6, 6))
    assert (layer.names, last.names) == (("0", "1"), ("2",))
    assert layer.activation is net[1].act
    assert last.activation is None
    images = torch.randn(5, 3, 6, 6)
    names = net[1].state_dict()
    stacks = [{n: t[None] for n, t in net[i].state_dict().items()} for i in (0, 1)]
    assert {n for n in names if n.startswith("running")} <= set(layer.modules[1].state_dict())
    ((_, hidden),) = layer.pre_activations(images, stacks, 2**20)
    with torch.no_grad():
        got = layer.activation(hidden[0]).unflatten(0, (5, 6, 6)).movedim(-1, 1)
        torch.testing.assert_close(got, net[:2](images))


def test_without_an_activation_it_is_batch_norm():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), fused(BatchNormAct2d(4, apply_act=False)), nn.ReLU())
    (layer,) = affine_layers(net.eval(), torch.randn(1, 3, 6, 6))
    assert (layer.names, layer.activation) == (("0", "1"), net[2])


@pytest.mark.parametrize("norm", [Scaled(4), Shifted(4), nn.BatchNorm2d(4, affine=True)])
def test_what_computes_anything_else_is_left_out(norm):
    if type(norm) is nn.BatchNorm2d:
        norm.running_mean = norm.running_var = None
    else:
        fused(norm)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.ReLU()).eval()
    assert affine_chains(net, torch.randn(2, 3, 6, 6)) == []


class Forked(nn.Module):
    """Two normalisations behind one layer; the first counts."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.last = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)
        self.one, self.two = BatchNormAct2d(4), BatchNormAct2d(4)

    def forward(self, x):
        x = self.conv(x)
        return self.act(self.last(self.one(x) + self.two(x)))


def plain(model):
    """The same network with a module of its own for every activation."""
    other = copy.deepcopy(model)
    for name, norm in [*other.named_modules()]:
        if isinstance(norm, BatchNormAct2d):
            parts = nn.Sequential(nn.BatchNorm2d(norm.num_features, eps=norm.eps), norm.act)
            parts[0].load_state_dict(norm.state_dict())
            other.set_submodule(name, parts)
    return other.eval()


def test_a_fork_is_treated_as_one_of_plain_modules():
    net, images = Forked().eval(), torch.ones(1, 3, 2, 2)
    assert [layer.names for layer in affine_layers(net, images)] == [("conv", "one"), ("last",)]
    names = [layer.names for layer in affine_layers(plain(net), images)]
    assert names == [("conv", "one.0"), ("last",)]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_050"])
def test_the_layers_of_timm_are_those_of_a_copy_of_plain_modules(name):
    """And as many as modules that activate: each follows one layer in these networks."""
    import timm

    torch.manual_seed(0)
    net, images = timm.create_model(name, num_classes=0).eval(), torch.randn(1, 3, 32, 32)
    found, same = affine_layers(net, images), affine_layers(plain(net), images)
    assert [layer.names[0] for layer in found] == [layer.names[0] for layer in same]
    kinds = [(type(a.activation), type(b.activation)) for a, b in zip(found, same, strict=True)]
    assert all(a is b for a, b in kinds)
    curved = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid)
    acts = [module for module in net.modules() if isinstance(module, curved)]
    assert len(found) == len(acts) == {"tf": 33, "mo": 42}[name[:2]]
