"""RegMean++: unit by unit taken literally, on every kind of network."""

import pytest
import torch
from tiny_networks import (
    NETWORKS,
    TIED,
    Tied,
    least_squares,
    loaded,
    seen_inputs,
    tied_zoo,
    zoo_of,
)
from torch import nn

from lightning_merge.core.errors import InputError
from lightning_merge.methods.average import Average
from lightning_merge.methods.regmean import RegMean
from lightning_merge.methods.regmean_pp import RegMeanPlusPlus

LATER = [f"layer{i}.0.{part}" for i in (2, 3, 4) for part in ("conv1", "conv2", "downsample.0")]
UNITS = {
    "open_clip": ["conv1", *(f"transformer.resblocks.{i}" for i in range(3))],
    "timm": ["patch_embed.proj", *(f"blocks.{i}" for i in range(3))],
    "transformers": ["embeddings.patch_embedding", *(f"encoder.layers.{i}" for i in range(3))],
    "resnet": ["conv1", "layer1.0", "layer1.1", *LATER],
    "mini_resnet": ["conv1", "layer1.0.conv1", "layer1.0.conv2", *LATER],
}


def first_call(model, unit, images):
    """What a module is called with in a plain forward pass."""
    found = []
    hook = lambda module, args, kwargs: found.append((args, kwargs))  # noqa: E731
    handle = model.get_submodule(unit).register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        model(images)
    handle.remove()
    return found[0]


def literally(model, base, experts, batches, units):
    """A whole forward pass per task and unit, whole networks, module hooks, least squares."""
    merged = Average()(base, experts)
    networks = {task: loaded(model, weights) for task, weights in experts.items()}
    for unit in units:
        seen, start = [], loaded(model, merged)
        for task, network in networks.items():
            args, kwargs = first_call(start, unit, batches[task])
            module = network.get_submodule(unit)
            inputs = seen_inputs(network, lambda m=module, a=args, k=kwargs: m(*a, **k))
            seen.append({n: x for n, x in inputs.items() if n.startswith(f"{unit}.")})
        for name in seen[0]:
            weights = [expert[name] for expert in experts.values()]
            merged[name] = least_squares([inputs[name] for inputs in seen], weights)
    return merged


def data_for(kind, experts):
    size = 32 if kind == "resnet" else 16
    return {task: torch.randn(3, 3, size, size, dtype=torch.float64) for task in experts}


def in_prefix(kind, model):
    first = next(iter(model.state_dict()))
    prefix = "vision_model." if first.startswith("vision_model.") else ""
    return [prefix + unit for unit in UNITS[kind]]


@pytest.mark.parametrize("kind", NETWORKS)
def test_blocks_see_the_merged_blocks_before_them(kind):
    model, base, experts = zoo_of(kind, 2, torch.float64)
    batches = data_for(kind, experts)
    merged = RegMeanPlusPlus(reduce=1.0)(base, experts, model=model, batches=batches)
    want = literally(model, base, experts, batches, in_prefix(kind, model))
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-4, atol=1e-5, msg=name)


def test_layers_see_the_merged_layers_before_them():
    model, base, experts = zoo_of("timm", 2, torch.float64)
    batches = data_for("timm", experts)
    method = RegMeanPlusPlus(reduce=1.0, unit="layer")
    merged = method(base, experts, model=model, batches=batches)
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    units = ["patch_embed.proj", *(f"blocks.{i}.{part}" for i in range(3) for part in parts)]
    want = literally(model, base, experts, batches, units)
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-4, atol=1e-5, msg=name)
    blocks = RegMeanPlusPlus(reduce=1.0)(base, experts, model=model, batches=batches)
    assert not torch.allclose(blocks["blocks.0.mlp.fc2.weight"], want["blocks.0.mlp.fc2.weight"])


def test_the_first_layer_equals_regmean(base, make_experts, resources):
    experts = make_experts(3)
    merged = RegMeanPlusPlus()(base, experts, **resources)
    want = RegMean()(base, experts, **resources)
    assert torch.equal(merged["stem.weight"], want["stem.weight"])
    assert not torch.allclose(merged["fc1.weight"], want["fc1.weight"], rtol=1e-3, atol=1e-4)


def test_a_weight_of_several_units_is_averaged(resources):
    model, base, experts = tied_zoo(3)
    merged = RegMeanPlusPlus()(base, experts, **resources | {"model": model})
    average = Average()(base, experts)
    assert all(torch.equal(merged[name], average[name]) for name in TIED)
    start, seen = loaded(model, merged), []
    for task, weights in experts.items():
        network = loaded(model, weights)
        (inputs,), _ = first_call(start, "head", resources["batches"][task])
        seen.append(seen_inputs(network, lambda n=network, x=inputs: n.head(x))["head.weight"])
    want = least_squares_reduced(seen, [expert["head.weight"] for expert in experts.values()])
    torch.testing.assert_close(merged["head.weight"], want, rtol=1e-4, atol=1e-5)


def least_squares_reduced(inputs, weights, reduce=0.95):
    """The solution by normal equations with the entries off the diagonal reduced."""
    grams = [x.double().T @ x.double() / len(x) for x in inputs]
    grams = [reduce * g + (1 - reduce) * g.diagonal().diag() for g in grams]
    right = sum(g @ w.double().T for g, w in zip(grams, weights, strict=True))
    return torch.linalg.solve(sum(grams), right).T.float()


class Blocks(nn.Module):
    """Two blocks; inside of each, two layers share a weight."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Tied() for _ in "ab")
        for block in self.blocks:
            block.head = nn.Linear(6, 6)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_a_weight_of_one_unit_is_merged_there():
    torch.manual_seed(0)
    model = Blocks().double()
    base = {name: t.detach().clone() for name, t in model.state_dict().items()}
    experts = {}
    for task in "ab":
        changed = {n: t + 0.1 * torch.randn_like(t) for n, t in base.items()}
        copies = {f"blocks.{i}.{TIED[1]}": changed[f"blocks.{i}.{TIED[0]}"] for i in (0, 1)}
        experts[task] = changed | copies
    batches = {task: torch.randn(9, 6, dtype=torch.float64) for task in experts}
    merged = RegMeanPlusPlus(reduce=1.0)(base, experts, model=model, batches=batches)
    inputs = []
    for task, weights in experts.items():
        (tokens,), _ = first_call(loaded(model, merged), "blocks.1", batches[task])
        block = loaded(model, weights).blocks[1]
        seen = seen_inputs(block, lambda b=block, x=tokens: b(x))
        inputs.append(torch.cat([seen[name] for name in TIED]))
    names = [f"blocks.1.{name}" for name in TIED]
    want = least_squares(inputs, [expert[names[0]] for expert in experts.values()])
    for name in names:
        torch.testing.assert_close(merged[name], want, rtol=1e-6, atol=1e-9)


def test_only_modules_of_linear_layers(base):
    model, base, experts = zoo_of("open_clip", 2)
    batches = {task: torch.randn(3, 3, 16, 16) for task in experts}
    method = RegMeanPlusPlus(layers="linear_modules")
    merged, average = method(base, experts, model=model, batches=batches), Average()(base, experts)
    moved = {n for n, t in merged.items() if not torch.equal(t, average[n])}
    assert moved == {
        f"transformer.resblocks.{i}.mlp.{part}.weight"
        for i in range(3)
        for part in ("c_fc", "c_proj")
    }


def test_one_expert_merges_to_itself_from_one_input(base, make_experts, resources):
    experts, image = make_experts(1), torch.randn(1, 6)
    merged = RegMeanPlusPlus()(base, experts, **resources | {"batches": {"task0": image}})
    for name, want in experts["task0"].items():
        if want.is_floating_point():
            torch.testing.assert_close(merged[name], want, rtol=0, atol=1e-6, msg=name)


def test_the_model_comes_back_unchanged():
    model, base, experts = zoo_of("resnet", 2)
    model.train()
    batches = {task: torch.randn(2, 3, 32, 32) for task in experts}
    RegMeanPlusPlus()(base, experts, model=model, batches=batches)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(t, base[n]) for n, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Idle(nn.Module):
    """A layer that is not called for images of some tasks."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = self.first(x)
        return self.second(x) if len(x) != 5 else x


def test_a_unit_that_is_not_always_called(resources):
    model = Idle()
    base = {name: t.detach() for name, t in model.state_dict().items()}
    batches = {"a": torch.ones(4, 6), "b": torch.ones(5, 6)}
    with pytest.raises(InputError, match="second"):
        RegMeanPlusPlus()(base, {"a": base, "b": base}, model=model, batches=batches)


@pytest.mark.parametrize(
    ("options", "resource", "message"),
    [
        ({"reduce": -0.1}, {}, "reduce"),
        ({"layers": "x"}, {}, "layers"),
        ({"unit": "x"}, {}, "unit"),
        ({}, {"model": None}, "model=None"),
        ({}, {"batches": torch.ones(3, 6)}, "batches"),
        ({"layers": "linear_modules"}, {"model": nn.Sequential()}, "no linear layer"),
    ],
)
def test_bad_input(options, resource, message, base, make_experts, resources):
    with pytest.raises(InputError, match=message):
        RegMeanPlusPlus(**options)(base, make_experts(2), **resources | resource)
