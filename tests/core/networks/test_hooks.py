"""What hooks see, and that none is left, against copies of the modules run by hand."""

import pytest
import torch
from torch import nn

from lightning_merge.core.networks.hooks import hooked


class Scaled(nn.Module):
    def forward(self, x, *, factor):
        return factor * x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 3), Scaled())

    def forward(self, x):
        return self.inner[1](self.inner[0](x), factor=2)


def hooks_of(net):
    return [
        hook
        for module in net.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    ]


def test_hooks_see_every_call_in_order_and_change_nothing():
    torch.manual_seed(0)
    net, x = Net(), torch.randn(4, 2)
    plain = net(x)
    hidden = x @ net.inner[0].weight.T + net.inner[0].bias
    seen = []
    before = {
        "": lambda module, args, kwargs: seen.append((module, args, kwargs)),
        "inner.1": lambda module, args, kwargs: seen.append((module, args, kwargs)),
    }
    after = {"inner.1": lambda module, args, kwargs, output: seen.append((module, output))}
    with hooked(net, before, after):
        assert torch.equal(net(x), plain)
    net(x)  # which no hook sees any more
    assert [entry[0] for entry in seen] == [net, net.inner[1], net.inner[1]]
    (_, whole, nothing), (_, inner, keywords), (_, output) = seen
    assert (whole[0] is x, nothing, keywords) == (True, {}, {"factor": 2})
    torch.testing.assert_close(inner[0], hidden)
    torch.testing.assert_close(output, 2 * hidden)


def run_until_error(net, before):
    with hooked(net, before):
        assert len(hooks_of(net)) == 2
        net(torch.ones(1, 2))
        raise KeyError("the body's")


def fail(*_):
    raise KeyError("the hook's")


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ({"inner.0": lambda *_: None}, "the body's"),
        ({"inner.0": fail}, "the hook's"),
        ({"inner.0": fail, "inner.9": fail}, "no attribute `9`"),
    ],
)
def test_no_hook_is_left_after_an_error(before, message):
    net = Net()
    net.inner[0].register_forward_pre_hook(lambda module, args: None)  # the user's own stays
    with pytest.raises((KeyError, AttributeError), match=message):
        run_until_error(net, before)
    assert len(hooks_of(net)) == 1
