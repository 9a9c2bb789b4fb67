"""EMR against the published implementation, Algorithm 1 in loops, and where it is exact."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_merge.core.errors import InputError
from lightning_merge.methods import LwPTV
from lightning_merge.methods.emr import EMR, pack, unpack, write_bits


def merged_names(base):
    return [n for n, t in base.items() if t.is_floating_point() and "running" not in n]


def algorithm_1(base, experts, rescale):
    """The paper's algorithm, one entry after the other, in float64."""
    names = merged_names(base)
    vectors = [{n: (e[n].double() - base[n].double()) for n in names} for e in experts.values()]
    unified = {n: torch.zeros_like(base[n], dtype=torch.float64) for n in names}
    for name in names:
        flats = [v[name].flatten() for v in vectors]
        for i in range(unified[name].numel()):
            values = [float(flat[i]) for flat in flats]
            sign = (sum(values) > 0) - (sum(values) < 0)
            unified[name].view(-1)[i] = sign * max([abs(v) for v in values if v * sign > 0] or [0])
    found = []
    for vector in vectors:
        masked = {n: unified[n] * (vector[n] * unified[n] > 0) for n in names}
        size = {n: vector[n].numel() if rescale == "tensors" else 1 for n in names}
        wanted, kept = (
            sum(float(v[n].abs().sum()) / size[n] for n in names if size[n])
            for v in (vector, masked)
        )
        found.append({n: base[n] + wanted / kept * masked[n] for n in names})
    return found


@pytest.mark.parametrize("rescale", ["entries", "tensors"])
@pytest.mark.parametrize("number", [2, 3, 9])
def test_every_task_has_the_weights_of_algorithm_1(net, base, make_experts, number, rescale):
    experts = make_experts(number)
    network = EMR(rescale)(base, experts, model=net)
    for task, expected in zip(experts, algorithm_1(base, experts, rescale), strict=True):
        weights = network.weights(task)
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor.float(), msg=name)


@pytest.mark.parametrize("number", [1, 3])
def test_experts_that_change_different_entries_are_restored(net, base, make_experts, number):
    """Statistics included; one expert alone is a case of it."""
    experts = make_experts(number)
    for k, expert in enumerate(experts.values()):
        for name in merged_names(base):
            own = torch.arange(base[name].numel()).view(base[name].shape) % number == k
            expert[name] = torch.where(own, expert[name], base[name])
    network = EMR()(base, experts, model=net)
    head, images = nn.Linear(4, 3), torch.randn(5, 6)
    for task, expert in experts.items():
        weights = network.weights(task)
        for name, tensor in expert.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(weights[name], tensor)
        expected = head(functional_call(copy.deepcopy(net).eval(), expert, (images,)))
        torch.testing.assert_close(network.logits(task, images, head), expected)


def test_opposite_experts_leave_nothing(net, base):
    """Their sum has no sign, which is 0 in the paper."""
    base = {n: t.round() if t.is_floating_point() else t for n, t in base.items()}
    up = {n: t + 0.5 if n in merged_names(base) else t for n, t in base.items()}
    down = {n: t - 0.5 if n in merged_names(base) else t for n, t in base.items()}
    network = EMR()(base, {"up": up, "down": down}, model=net)
    for name in merged_names(base):
        assert torch.equal(network.weights("up")[name], base[name])


def test_a_task_without_mask_gets_the_unified_task_vector(net, base, make_experts):
    experts = make_experts(3)
    network = EMR()(base, experts, model=net)
    weights = network.weights("unseen")
    for name in merged_names(base):
        vectors = torch.stack([e[name] - base[name] for e in experts.values()])
        change = weights[name] - base[name]
        assert bool((change * vectors.sum(0) >= 0).all())
        largest = (vectors * vectors.sum(0).sign()).relu().amax(0)
        torch.testing.assert_close(change.abs(), largest, rtol=1e-4, atol=1e-6)
    mean = sum(e["norm.running_var"] for e in experts.values()) / 3
    torch.testing.assert_close(weights["norm.running_var"], mean)


def test_statistics_are_measured_with_each_tasks_weights(net, base, make_experts):
    seen = {}

    def recalibrate(weights, task=None):
        seen[task] = {name: tensor.clone() for name, tensor in weights.items()}
        return {**weights, "norm.running_mean": torch.full((10,), float(task[-1]))}

    experts = make_experts(3)
    network = EMR()(base, experts, model=net, recalibrate=recalibrate)
    for k, task in enumerate(experts):
        assert network.weights(task)["norm.running_mean"].tolist() == [k] * 10
        assert set(seen[task]) == set(base)
        for name in merged_names(base):
            assert torch.equal(seen[task][name], network.weights(task)[name])


def test_the_order_of_experts_does_not_matter(net, base, make_experts):
    experts = make_experts(5)
    one = EMR()(base, experts, model=net)
    other = EMR()(base, dict(reversed(experts.items())), model=net)
    for task in experts:
        torch.testing.assert_close(one.weights(task), other.weights(task))


def test_transforms_come_first(net, base, make_experts):
    experts = make_experts(3)
    network = EMR(transforms=[LwPTV(0.6)])(base, experts, model=net)
    plain = EMR()(base, experts, model=net)
    pruned = [
        name
        for name in merged_names(base)
        if base[name].numel() and torch.equal(network.weights("task0")[name], base[name])
    ]
    assert pruned
    assert not any(torch.equal(plain.weights("task0")[name], base[name]) for name in pruned)


@pytest.mark.parametrize("number", [1, 8, 9])
def test_masks_take_one_bit_per_entry(net, base, make_experts, number):
    network = EMR()(base, make_experts(number), model=net)
    entries = sum(base[name].numel() for name in merged_names(base))
    statistics = 20  # of ten channels
    words = -(-number * -(-entries // 8) // 4)
    assert network.extra_parameters == entries + words + number * (1 + statistics)
    assert network.inference_cost == 1


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_packing_and_unpacking_are_inverse(count):
    masks = torch.rand(3, count, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = pack(masks)
    assert packed.shape == (3, -(-count // 8))
    for row, mask in zip(packed, masks, strict=True):
        assert torch.equal(unpack(row, count), mask)


@pytest.mark.parametrize("start", [0, 1, 7, 8, 13])
def test_bits_are_written_where_they_belong(start):
    masks = torch.rand(3, 21, generator=torch.Generator().manual_seed(0)) < 0.5
    before = torch.rand(3, start, generator=torch.Generator().manual_seed(1)) < 0.5
    packed = torch.zeros(3, 6, dtype=torch.uint8)
    write_bits(packed, 0, before)
    write_bits(packed, start, masks)
    for row, *parts in zip(packed, before, masks, strict=True):
        found = unpack(row, 48)
        assert torch.equal(found[: start + 21], torch.cat(parts))
        assert not found[start + 21 :].any()


@pytest.mark.parametrize("tile", [1, 30])
def test_the_size_of_tiles_does_not_matter(net, base, make_experts, tile, monkeypatch):
    experts = make_experts(3)
    expected = EMR()(base, experts, model=net).state_dict()
    monkeypatch.setattr("lightning_merge.core.vectors.tiles.TILE", tile)
    found = EMR()(base, experts, model=net).state_dict()
    torch.testing.assert_close(found.pop("rescalers"), expected.pop("rescalers"))
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


class Tied(nn.Module):
    """One matrix under two names."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.end = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.end(self.two(self.one(x).relu()).relu())


def test_tied_weights():
    torch.manual_seed(0)
    net, images = Tied(), torch.randn(5, 6)
    base = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    one, end = (torch.randn(6, 6) for _ in range(2))
    expert = {"one.weight": one, "two.weight": one, "end.weight": end}
    network = EMR()({**base, "two.weight": base["one.weight"]}, {"only": expert}, model=net)
    found = network.logits("only", images, nn.Identity())
    expected = ((images @ one.T).relu() @ one.T).relu() @ end.T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_weights_are_made_once_for_batches_of_a_task(net, base, make_experts, monkeypatch):
    network, made = EMR()(base, make_experts(3), model=net), []
    plain = network.weights
    monkeypatch.setattr(network, "weights", lambda task: made.append(task) or plain(task))
    head, images = nn.Linear(4, 3), torch.randn(5, 6)
    tasks = ["task0", "task0", "task1", "task1", "unseen", "task0", "task0"]
    for task in tasks:
        expected = head(functional_call(network.network, plain(task), (images,)))
        assert torch.equal(network.logits(task, images, head), expected)
    assert made == ["task0", "task1", "unseen", "task0"]


def test_weights_that_were_kept_follow_the_network(net, base, make_experts):
    """Other values, another type, and inference mode, whose tensors no gradient goes through."""
    network, other = (EMR()(base, make_experts(k), model=net) for k in (3, 4))
    other = EMR()(base, dict(list(make_experts(4).items())[1:]), model=net)
    head, images = nn.Identity(), torch.randn(5, 6)
    before = network.logits("task1", images, head)
    network.load_state_dict({**other.state_dict()})
    after = network.logits("task1", images, head)
    assert torch.equal(after, other.logits("task2", images, head))  # now the second
    assert not torch.equal(after, before)
    with torch.inference_mode():
        network.logits("task0", images, head)
    network.logits("task0", images.clone().requires_grad_(), head).sum().backward()
    assert network.double().logits("task0", images.double(), head).dtype == torch.float64


MEMORY = """
import torch
from lightning_merge.core.cost import measured
from lightning_merge.methods import EMR
net = torch.nn.Sequential(*(torch.nn.Linear(500, 500, bias=False) for _ in range(16)))
base = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
experts = {f"task{k}": {name: tensor + k for name, tensor in base.items()} for k in range(8)}
EMR()(base, experts, model=net)
with measured(torch.device("cpu")) as cost:
    network = EMR()(base, experts, model=net)
assert len(network.tasks) == 8
print(cost.peak_memory)
"""


def test_memory_is_that_of_the_network():
    """Base, task vector and masks take 2 + K / 32 networks, tiles some MiB more."""
    # A process of its own: this one gives memory of earlier tests back at any time.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    peak = subprocess.check_output([sys.executable, "-c", MEMORY], env=environment, text=True)
    if peak.strip() == "None":
        pytest.skip("the system does not tell a process's peak")
    assert int(peak) < 6 * 16 * 500 * 500 * 4


def test_other_rescalers_are_unknown():
    with pytest.raises(InputError, match="rescale='layers'"):
        EMR("layers")


class Stored(nn.Module):
    """A network of tensors with any names, of which dots make submodules."""

    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            place = self
            for part in path:
                if part not in dict(place.named_children()):
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(last, nn.Parameter(tensor.clone()))


@pytest.mark.shared
def test_parity_with_the_published_implementation(zoo, expected):
    base, experts, _ = zoo
    stored = expected("emr_mlossrepo_globalsum")
    network = EMR()(base, experts, model=Stored(base))
    torch.testing.assert_close(network.rescalers, stored["rescalers"], rtol=0, atol=1e-5)
    unmasked = network.weights("unseen")
    for k, task in enumerate(experts):
        weights = network.weights(task)
        for name in base:
            unified = stored[f"unified.{name}"]
            mask = (experts[task][name] - base[name]) * unified > 0
            update = stored["rescalers"][k] * mask * unified
            torch.testing.assert_close(
                weights[name], (base[name] + update).float(), rtol=0, atol=1e-5
            )
            torch.testing.assert_close(unmasked[name], base[name] + unified, rtol=0, atol=1e-5)
