"""Looking into a network while it runs: modules in order, their inputs, tied tensors."""

import pytest
import torch
from torch import nn

from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.tracing import (
    arguments_of,
    called_modules,
    repeated_blocks,
    run_visiting,
    tied_names,
)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4),
        nn.Dropout(),
        nn.GELU(),
        nn.Linear(4, 4),
        nn.Softmax(-1),
        nn.Linear(4, 5),
        nn.ReLU(inplace=True),
        nn.Linear(5, 2),
    )


def test_visitors_see_inputs_and_may_change_what_follows(net):
    net.eval()
    images, seen = torch.randn(2, 7, 3), {}
    state = {name: t.clone() for name, t in net.state_dict().items()}

    def visit_first(x):
        seen["0"] = x
        state["0.weight"].zero_()
        state["0.bias"].zero_()

    run_visiting(net, state, images, {"0": visit_first, "3": lambda x: seen.update({"3": x})})
    assert torch.equal(seen["0"], images)
    assert seen["3"].shape == (2, 7, 4)
    assert not seen["3"].any()
    assert net[0].weight.any()


def test_tied_names_follow_the_first():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[2].weight = net[0].weight
    assert tied_names(net) == {n: n for n in net.state_dict()} | {"2.weight": "0.weight"}
    state = {"0.weight": torch.zeros(2, 2), "0.bias": torch.ones(2), "2.bias": torch.zeros(2)}
    seen = {}
    run_visiting(net, state, torch.ones(3, 2), {"2": lambda x: seen.update(x=x)})
    assert torch.equal(seen["x"], torch.ones(3, 2))
    net[3] = nn.Identity()
    net.append(nn.Linear(2, 1))
    (inputs,), *_ = arguments_of(net, state, torch.ones(3, 2), "4")
    assert not inputs.any()
    assert net[0].weight.any()


def test_a_layer_that_never_runs_is_an_error():
    net = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    net.forward = lambda x: net["used"](x)
    with pytest.raises(InputError, match="idle"):
        run_visiting(net, net.state_dict(), torch.ones(1, 2), {"idle": lambda x: None})


def test_arguments_of_a_module_and_no_further(net):
    state = {name: torch.zeros_like(t) for name, t in net.state_dict().items()}
    reached = []
    handle = net[5].register_forward_pre_hook(lambda *_: reached.append(True))
    (found,), keywords, _ = arguments_of(net, state, torch.randn(2, 3), "3")
    handle.remove()
    assert not found.any()
    assert (found.shape, keywords, reached) == ((2, 4), {}, [])
    assert net.training
    assert not any(module._forward_pre_hooks for module in net)


def test_called_modules_in_order():
    net = nn.ModuleDict({"last": nn.Linear(2, 2), "idle": nn.ReLU(), "first": nn.Linear(2, 2)})
    net.forward = lambda x: net["last"](net["first"](net["first"](x)))
    assert called_modules(net, torch.ones(1, 2)) == ["", "first", "last"]


def block():
    return nn.TransformerEncoderLayer(4, 1)


@pytest.mark.parametrize(
    ("network", "blocks"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), set()),  # layers, no blocks
        (nn.Sequential(block(), nn.Identity(), block()), {"0", "2"}),
        (nn.Sequential(nn.Sequential(block(), block()), nn.Linear(4, 2)), {"0.0", "0.1"}),
        (
            nn.ModuleList([nn.Sequential(block(), block()) for _ in "ab"]),
            {"0.0", "0.1", "1.0", "1.1"},
        ),
        (nn.Sequential(nn.Sequential(block())), set()),  # one only
    ],
)
def test_repeated_blocks(network, blocks):
    assert repeated_blocks(network) == blocks
