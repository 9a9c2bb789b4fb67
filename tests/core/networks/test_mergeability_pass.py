"""Mergeability in one pass against copies of the networks, each run by itself."""

import copy
from itertools import combinations

import pytest
import torch
from torch import nn

from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.affine import affine_layers
from lightning_merge.core.networks.m_loss import layer_m_loss, node_m_loss
from lightning_merge.core.networks.mergeability import mergeability

TASKS = ("a", "b", "c")


def vit():
    from timm.models.vision_transformer import VisionTransformer

    net = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0, num_classes=0
    )
    for block in net.blocks:  # timm begins with weights too small to bend the activation
        block.mlp.fc1.weight.data.mul_(10)
    return net


def clip():
    from open_clip.transformer import QuickGELU, VisionTransformer

    return VisionTransformer(
        image_size=16,
        patch_size=8,
        width=16,
        layers=2,
        heads=2,
        mlp_ratio=2.0,
        output_dim=8,
        act_layer=QuickGELU,
    )


def resnet(block):
    from timm.models import resnet

    net = resnet.ResNet(
        getattr(resnet, block), (1, 2, 1, 1), channels=(4, 4, 6, 8), stem_width=4, num_classes=0
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if it had been trained
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    return net


STAGES = ("layer1.0", "layer2.0", "layer2.1", "layer3.0", "layer4.0")
NETS = {
    "vit": (vit, [(f"blocks.{i}.mlp.fc1",) for i in range(2)]),
    "clip": (clip, [(f"transformer.resblocks.{i}.mlp.c_fc",) for i in range(2)]),
    "basic": (
        lambda: resnet("BasicBlock"),
        [("conv1", "bn1"), *((f"{stage}.conv1", f"{stage}.bn1") for stage in STAGES)],
    ),
    "bottleneck": (
        lambda: resnet("Bottleneck"),
        [
            ("conv1", "bn1"),
            *((f"{stage}.conv{i}", f"{stage}.bn{i}") for stage in STAGES for i in (1, 2)),
        ],
    ),
}


def weights(net):
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def noisy(state, seed, size=0.1):
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.rand(t.shape, generator=generator) for name, t in state.items()}
    return {
        name: t * (1 + size * (noise[name] - 0.5)) + size * (noise[name] - 0.5) * t.std()
        if t.is_floating_point() and t.numel() > 1
        else t
        for name, t in state.items()
    }


@pytest.fixture(params=NETS)
def case(request):
    """A network, the names of its layers, its base, experts of it, and images."""
    torch.manual_seed(0)
    make, layers = NETS[request.param]
    net = make()
    base = weights(net)
    experts = {task: noisy(base, seed, size=0.5) for seed, task in enumerate(TASKS)}
    return net, layers, base, experts, torch.randn(3, 3, 16, 16)


def as_network(net, state):
    other = copy.deepcopy(net)
    other.load_state_dict(state)
    return other.eval()


@torch.no_grad()
def inputs_of(net, names, images):
    """What each layer's first module is given."""
    found = {}
    for name in names:
        net.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: found.setdefault(name, args[0].clone())
        )
    net(images)
    return found


@torch.no_grad()
def pre_activations(net, names, x):
    for name in names:
        x = net.get_submodule(name)(x)
    return (x.movedim(1, -1) if x.ndim == 4 else x).flatten(0, -2)


def test_layers_end_where_something_else_happens(case):
    """Shortcuts are added in front of the last activation of every residual block."""
    net, layers, *_, images = case
    before = weights(net)
    net.train()
    assert [layer.names for layer in affine_layers(net, images[:1])] == layers
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("layer_inputs", ["merged", "base"])
@pytest.mark.parametrize("chunk", [1, 2**22])
def test_every_network_by_itself(case, layer_inputs, chunk, monkeypatch):
    monkeypatch.setattr("lightning_merge.core.networks.mergeability._CHUNK", chunk)
    net, layers, base, experts, images = case
    running = base
    if layer_inputs == "merged":
        running = {n: sum(e[n] for e in experts.values()) / 3 for n in base}
        running |= {n: t for n, t in base.items() if not t.is_floating_point()}
    inputs = inputs_of(as_network(net, running), [names[0] for names in layers], images)
    acts = [layer.activation for layer in affine_layers(net, images[:1])]
    networks = [as_network(net, expert) for expert in experts.values()]

    found = mergeability(base, experts, net, images, layer_inputs)

    assert found.tasks == TASKS
    assert list(found.layers) == [names[0] for names in layers]
    for names, act in zip(layers, acts, strict=True):
        x, got = inputs[names[0]], found.layers[names[0]]
        hidden = torch.stack([pre_activations(network, names, x) for network in networks])
        check_layer(got, hidden, lambda h, act=act: act(h.clone()))
    assert max(layer.all.node.max() for layer in found.layers.values()) > 1e-3
    normalized = [layer.all.layer_normalized for layer in found.layers.values()]
    assert found.overall_normalized == pytest.approx(float(sum(normalized)) / len(layers))
    means = sum(layer.pairwise_normalized for layer in found.layers.values()) / len(layers)
    torch.testing.assert_close(found.pairwise_normalized, means)
    relative = [layer.all.layer / (layer.all.norm + 1e-4) for layer in found.layers.values()]
    assert found.overall == pytest.approx(float(sum(relative)) / len(layers))
    pairs = [layer.pairwise / (layer.pairwise_norm + 1e-4) for layer in found.layers.values()]
    means = sum(pairs) / len(layers)
    torch.testing.assert_close(found.pairwise, means)
    assert found.experts["b"] == pytest.approx(float(means[1, 0] + means[1, 2]) / 2)


def check_layer(got, hidden, act):
    close = {"check_dtype": False, "rtol": 1e-3, "atol": 1e-6}
    torch.testing.assert_close(got.all.node, node_m_loss(hidden, act), **close)
    node = node_m_loss(hidden, act, normalized=True)
    torch.testing.assert_close(got.all.node_normalized, node, **close)
    torch.testing.assert_close(got.all.layer, layer_m_loss(hidden, act), **close)
    layer = layer_m_loss(hidden, act, normalized=True)
    torch.testing.assert_close(got.all.layer_normalized, layer, **close)
    norm = act(hidden.mean(0)).norm(dim=1).mean()
    torch.testing.assert_close(got.all.norm, norm, **close)
    for i, j in combinations(range(len(hidden)), 2):
        norm = act((hidden[i] + hidden[j]) / 2).norm(dim=1).mean()
        torch.testing.assert_close(got.pairwise_norm[i, j], norm, **close)
        torch.testing.assert_close(got.pairwise_norm[j, i], norm, **close)
    for matrix, normalized in ((got.pairwise, False), (got.pairwise_normalized, True)):
        assert torch.equal(matrix, matrix.T)
        assert not matrix.diag().any()
        for i, j in combinations(range(len(hidden)), 2):
            pair = layer_m_loss(hidden[[i, j]], act, normalized=normalized)
            torch.testing.assert_close(matrix[i, j], pair, **close)


def test_laws(case):
    net, _, base, experts, images = case
    found = mergeability(base, experts, net, images)
    back = mergeability(base, dict(reversed(experts.items())), net, images)
    torch.testing.assert_close(back.pairwise.flip(0, 1), found.pairwise, rtol=1e-4, atol=1e-7)
    assert back.experts == pytest.approx(found.experts, rel=1e-4)
    assert back.overall == pytest.approx(found.overall, rel=1e-4)
    pair = mergeability(base, {task: experts[task] for task in "ab"}, net, images)
    assert pair.overall == pytest.approx(float(pair.pairwise[0, 1]), rel=1e-5)
    same = mergeability(base, {task: experts["a"] for task in TASKS}, net, images)
    assert same.overall < 1e-6
    assert same.pairwise.max() < 1e-6


def test_experts_farther_apart_merge_worse():
    torch.manual_seed(0)
    net, images = vit(), torch.randn(3, 3, 16, 16)
    base = weights(net)
    sizes = [
        mergeability(base, {t: noisy(base, i, size) for i, t in enumerate(TASKS)}, net, images)
        for size in (0.01, 0.1, 0.5)
    ]
    assert sizes[0].overall < sizes[1].overall < sizes[2].overall


def test_prefixes_half_precision_and_other_tensors(case):
    net, _, base, experts, images = case
    halves = {
        task: {n: t.bfloat16() if t.is_floating_point() else t for n, t in expert.items()}
        for task, expert in experts.items()
    }
    stored = {
        task: {f"model.visual.{n}": t for n, t in expert.items()} | {"text.weight": torch.ones(2)}
        for task, expert in {"base": base, **halves}.items()
    }
    rounded = {
        task: {n: t.float() if t.is_floating_point() else t for n, t in expert.items()}
        for task, expert in halves.items()
    }
    found = mergeability(stored.pop("base"), stored, net, images)
    same = mergeability(base, rounded, net, images)
    assert torch.equal(found.pairwise, same.pairwise)
    assert found.overall == same.overall


@pytest.mark.parametrize(
    ("dtype", "close"),
    [
        (torch.float16, {"rtol": 0.02}),
        (torch.bfloat16, {"rtol": 0.1}),
        (torch.float64, {"rtol": 1e-4}),
    ],
)
@pytest.mark.parametrize(
    ("case", "size"),
    [("vit", 0.02), ("clip", 0.02), ("basic", 0.5), ("bottleneck", 0.5)],
    indirect=["case"],
)
def test_networks_of_other_precision(case, size, dtype, close):
    """Inputs follow the network; losses are taken in float32, as those of 0.02 have to be."""
    net, _, base, _, images = case
    experts = {task: noisy(base, seed, size) for seed, task in enumerate(TASKS)}
    other = copy.deepcopy(net).to(dtype)
    found = mergeability(base, experts, other, images)
    expected = mergeability(base, experts, net, images)
    assert all(p.dtype == dtype for p in other.parameters())
    torch.testing.assert_close(found.pairwise, expected.pairwise, **close, atol=0)


def test_a_few_samples_at_which_a_layer_gives_nothing_do_not_decide():
    """Positions off in the merged ReLU layer and on in an expert: Definition 3.5 divides by eps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    base = weights(net)
    experts = {"a": noisy(base, 0), "b": noisy(base, 1)}
    border = torch.zeros(1, 4)
    border[0, 3] = 1.0  # no other input has it
    for task, value in (("a", -2.0), ("b", 1.0)):
        experts[task]["0.weight"][:, 3] = value
    inner = torch.randn(63, 4)
    inner[:, 3] = 0
    clean = mergeability(base, experts, net, inner)
    found = mergeability(base, experts, net, torch.cat([inner, border]))
    assert found.overall_normalized > clean.overall_normalized + 10
    assert found.overall < clean.overall + 0.1


def spoilt(experts):
    name = next(iter(experts["a"]))
    return {**experts, "a": {**experts["a"], name: experts["a"][name] * torch.nan}}


def huge(experts):
    """Finite weights of which one layer gives infinity."""
    name = "blocks.0.mlp.fc1.weight"
    return {task: {**expert, name: expert[name].sign() * 1e38} for task, expert in experts.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda e, x: {"layer_inputs": "both"}, "layer_inputs='both'"),
        (lambda e, x: {"inputs": x[:0]}, "inputs: empty"),
        (lambda e, x: {"inputs": x * torch.nan}, "inputs: some are NaN"),
        (lambda e, x: {"inputs": x[:, :, 1:]}, r"inputs of shape \[2, 3, 15, 16\]"),
        (lambda e, x: {"experts": huge(e)}, "output of layer blocks.0.mlp.fc1 .* is not finite"),
        (lambda e, x: {"experts": {"a": e["a"]}}, "at least 2"),
        (lambda e, x: {"experts": {**e, "b": {}}}, "missing"),
        (lambda e, x: {"experts": spoilt(e)}, "of a has NaN"),
    ],
)
def test_bad_arguments(changes, message):
    net, images = vit(), torch.randn(2, 3, 16, 16)
    base = weights(net)
    experts = {task: noisy(base, seed) for seed, task in enumerate(TASKS)}
    given = {"experts": experts, "model": net, "inputs": images} | changes(experts, images)
    with pytest.raises(InputError, match=message):
        mergeability(base, **given)


def test_a_network_without_activations():
    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.ReLU())
    base = weights(net)
    with pytest.raises(InputError, match="feeds an activation"):
        mergeability(base, {"a": base, "b": base}, net, torch.ones(1, 2))


def test_a_layer_that_is_used_twice_is_measured_where_it_comes_first():
    torch.manual_seed(0)
    layer, images = nn.Linear(4, 4), torch.randn(9, 4)
    net = nn.Sequential(layer, nn.Tanh(), layer, nn.ReLU())
    base = weights(net)
    assert set(base) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    first = [noisy(weights(layer), seed, size=0.5) for seed in range(2)]
    experts = {
        task: {f"{i}.{n}": t for i in (0, 2) for n, t in expert.items()}
        for task, expert in zip("ab", first, strict=True)
    }
    found = mergeability(base, experts, net, images)
    hidden = torch.stack([images @ e["weight"].T + e["bias"] for e in first])
    assert list(found.layers) == ["0"]
    check_layer(found.layers["0"], hidden, torch.tanh)
