"""The mean of outputs against networks that are run one by one, and what all networks share."""

import copy
import json

import pytest
import torch
from torch import nn

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.methods import LwPTV, TaskArithmetic, registered
from lightning_merge.methods.emr import EMR
from lightning_merge.methods.ensemble import Ensemble
from lightning_merge.methods.network import (
    NetworkMethod,
    TaskNetwork,
    holds_network,
    load_network,
    minibatches,
    save_network,
)
from lightning_merge.methods.surgery import Surgery
from lightning_merge.methods.wemoe import WEMoE

TRAINED = {"steps": 3, "batch_size": 4}
METHODS = {
    "emr": EMR(),
    "surgery": Surgery(TaskArithmetic(0.5), rank=2, **TRAINED),
    "ensemble": Ensemble(),
    "probabilities": Ensemble("probabilities"),
    "wemoe": WEMoE(**TRAINED),
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class TinyViT(nn.Module):
    """Inputs and outputs of the tiny network, blocks of a Transformer in between."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(2, 8)
        self.norm = nn.BatchNorm1d(3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 4)
        self.register_buffer("steps", torch.arange(3))

    def forward(self, x):
        x = self.norm(self.fc1(x.view(-1, 3, 2)))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


@pytest.fixture
def net(net, request):
    """The tiny network, or one with MLPs to route."""
    named = getattr(request.node, "callspec", None)
    if named is None or named.params.get("name") != "wemoe":
        return net
    torch.manual_seed(0)
    return TinyViT()


def run(net, weights, images):
    network = copy.deepcopy(net).eval()
    network.load_state_dict(weights)
    with torch.no_grad():
        return network(images)


def pruned(base, experts, prune):
    """The experts that are left of their task vectors."""
    vectors = prune(TaskVectors(base, experts))
    return {
        task: {n: vectors.weights(n)[k] if n in vectors.names else t for n, t in expert.items()}
        for k, (task, expert) in enumerate(experts.items())
    }


@pytest.mark.parametrize("transforms", [(), (LwPTV(0.5),)])
@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_it_is_the_mean_of_the_experts_outputs(
    net, base, make_experts, resources, outputs, transforms
):
    experts, head, images = make_experts(3), nn.Linear(4, 3), resources["batches"]["task0"]
    network = Ensemble(outputs, transforms=transforms)(base, experts, model=net)
    for transform in transforms:
        experts = pruned(base, experts, transform)
    each = [head(run(net, expert, images)) for expert in experts.values()]
    if outputs == "logits":
        expected = sum(each) / 3
    else:
        expected = (sum(one.softmax(-1) for one in each) / 3).log()
    torch.testing.assert_close(network.logits("any", images, head), expected)
    features = sum(run(net, expert, images) for expert in experts.values()) / 3
    torch.testing.assert_close(network.features("any", images), features)
    assert network.inference_cost == 3
    assert network.extra_parameters == 2 * sum(tensor.numel() for tensor in base.values())


@pytest.mark.parametrize("name", METHODS)
def test_the_network_of_a_file_is_the_one_that_was_saved(
    tmp_path, net, base, make_experts, resources, name
):
    network = METHODS[name](base, make_experts(3), **{**resources, "project": lambda out: 2 * out})
    path = save_network(network, tmp_path / "n.safetensors", metadata={"seconds": "1"})
    assert holds_network(path)
    assert open_checkpoint(path).metadata["seconds"] == "1"
    other = type(net)()
    loaded = load_network(path, other, lambda out: 2 * out)
    head, images = nn.Linear(4, 3), resources["batches"]["task1"]
    for task in ("task0", "task1", "unseen"):
        expected = network.logits(task, images, head)
        assert torch.equal(loaded.logits(task, images, head), expected)
    assert loaded.extra_parameters == network.extra_parameters > 0
    assert loaded.inference_cost == network.inference_cost


@pytest.mark.parametrize("name", METHODS)
def test_it_always_evaluates(tmp_path, net, base, make_experts, resources, name):
    """BatchNorm would change its statistics, and answer by the batch."""
    net.train()
    network = METHODS[name](base, make_experts(2), **resources)
    path = save_network(network, tmp_path / "n.safetensors", metadata={})
    head, images = nn.Linear(4, 3), resources["batches"]["task0"]
    for one in (network, load_network(path, net)):
        before = copy.deepcopy(one.state_dict())
        answer = one.logits("task0", images, head)
        assert one.train() is one
        nn.ModuleList([one]).train()
        assert not any(module.training for module in one.modules())
        assert torch.equal(one.logits("task0", images, head), answer)
        assert all(torch.equal(before[key], tensor) for key, tensor in one.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_inputs_come_back_unchanged_and_the_result_is_frozen(
    net, base, make_experts, resources, name
):
    net.train()
    experts = make_experts(2)
    before = copy.deepcopy((base, experts, net.state_dict()))
    state = torch.get_rng_state()
    network = METHODS[name](base, experts, **resources)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in net.modules())
    for old, new in zip(before, (base, experts, net.state_dict()), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("number", [1, 2, 20])
def test_copies_of_the_base_answer_as_the_base(net, base, resources, name, number):
    experts = {f"task{k}": base for k in range(number)}
    network = METHODS[name](base, experts, **resources)
    head, images = nn.Linear(4, 3), resources["batches"]["task0"]
    expected = head(run(net, base, images))
    found = network.logits("task0", images, head)
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_half_precision_is_merged_in_float32(net, base, make_experts, resources, name, dtype):
    experts = make_experts(2)
    stored = {
        task: {n: t.to(dtype) if t.is_floating_point() else t for n, t in expert.items()}
        for task, expert in experts.items()
    }
    wide = {
        task: {n: t.float() if t.is_floating_point() else t for n, t in expert.items()}
        for task, expert in stored.items()
    }
    head, images = nn.Linear(4, 3), resources["batches"]["task0"]
    found = METHODS[name](base, stored, **resources).logits("task0", images, head)
    expected = METHODS[name](base, wide, **resources).logits("task0", images, head)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tensor", ["fc1.weight", "norm.running_var"])
def test_nan_names_expert_and_tensor(base, make_experts, resources, name, tensor):
    experts = make_experts(2)
    experts["task1"][tensor] = experts["task1"][tensor].clone().fill_(torch.nan)
    with pytest.raises(InputError, match=rf"{tensor} of task1 has NaN"):
        METHODS[name](base, experts, **resources)


@pytest.mark.parametrize("name", METHODS)
def test_the_model_is_asked_for(base, make_experts, name):
    with pytest.raises(InputError, match="model=None"):
        METHODS[name](base, make_experts(2))


def test_every_network_method_is_listed():
    listed = registered(NetworkMethod)
    assert {"EMR", "Ensemble", "Surgery", "WEMoE"} <= set(listed)
    facts = [kind.facts for kind in listed.values()]
    assert all(own.reference and (own.readings or own.on_top) for own in facts)


def test_a_damaged_mlp_is_named(base, make_experts, resources):
    """As in all tensors, in those that are routed."""
    torch.manual_seed(0)
    net = TinyViT()
    base = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    experts = make_experts(2, base)
    experts["task1"]["blocks.1.mlp.0.bias"] = torch.full((12,), torch.inf)
    with pytest.raises(InputError, match=r"blocks.1.mlp.0.bias of task1 has NaN or infinite"):
        METHODS["wemoe"](base, experts, **{**resources, "model": net})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "Other"}, "Other"),
        ({"options": json.dumps({"members": 2})}, "outputs"),
        ({"options": json.dumps({"members": 3, "outputs": "logits"})}, "members.2"),
        ({"options": "{"}, "does not hold a network"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, net, base, make_experts, change, message):
    network = Ensemble()(base, make_experts(2), model=net)
    metadata = {"network": "EnsembleNetwork", "options": json.dumps(network.options), **change}
    path = save_checkpoint(network.state_dict(), tmp_path / "n.safetensors", metadata=metadata)
    with pytest.raises(InputError, match=f"n.safetensors .*(?s:.*){message}"):
        load_network(path, net)


def test_weights_are_no_network(tmp_path, base):
    assert not holds_network(save_checkpoint(base, tmp_path / "w.safetensors"))


def test_an_own_network_needs_no_more_than_its_logits(tmp_path, net):
    class Constant(TaskNetwork):
        def __init__(self, model, project, value):
            super().__init__(model, project, value=value)
            self.network, self.value = model, value

        def logits(self, task, images, head):
            return torch.full((len(images), 3), self.value)

    path = save_network(Constant(net, None, 2.5), tmp_path / "n.safetensors", metadata={})
    assert (
        load_network(path, net).logits("any", torch.zeros(2, 6), None).tolist() == [[2.5] * 3] * 2
    )


@pytest.mark.parametrize(("count", "size"), [(7, 3), (4, 4), (3, 16), (1, 1)])
def test_minibatches_see_every_sample_once_per_round(count, size):
    batches = minibatches(count, size, torch.Generator().manual_seed(0))
    sampled = [next(batches) for _ in range(4 * count)]
    assert {len(rows) for rows in sampled} == {min(size, count)}
    order = torch.cat(sampled)[: 2 * count]
    for part in order.split(count):
        assert sorted(part.tolist()) == list(range(count))
