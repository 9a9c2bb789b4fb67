"""Finding linear layers that feed an activation, and what counts as one."""

import pytest
import torch
from torch import nn

from lightning_merge.core.networks.affine import affine_layers, is_activation


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.GELU(), True),
        (nn.ReLU(inplace=True), True),
        (nn.Tanh(), True),
        (nn.LeakyReLU(0.9), True),
        (nn.Hardswish(), True),
        (nn.Identity(), False),
        (nn.Dropout(0.5).eval(), False),
        (nn.Softmax(-1), False),
        (nn.LayerNorm(13, elementwise_affine=False), False),
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


def test_a_layer_before_two_modules_that_normalise_and_activate_is_left_out():
    from timm.layers import BatchNormAct2d

    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, self.last = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)
            self.one, self.two = BatchNormAct2d(4), BatchNormAct2d(4)

        def forward(self, x):
            x = self.conv(x)
            return self.act(self.last(self.one(x) + self.two(x)))

    assert [layer.names for layer in affine_layers(Forked(), torch.ones(1, 3, 2, 2))] == [("last",)]
