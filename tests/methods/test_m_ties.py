"""M-TIES: one pass equals Algorithm 1 taken literally, on real ViTs and on one's own encoder."""

import copy
import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_merge.core.errors import InputError
from lightning_merge.methods import LwPTV, MTies, Resources, Ties, m_ties
from lightning_merge.methods.streaming import merge_one


def all_inputs(resources, tasks):
    return torch.cat([resources["batches"][task] for task in tasks])


def open_clip_tower():
    from open_clip.transformer import QuickGELU, VisionTransformer

    return VisionTransformer(
        image_size=16,
        patch_size=8,
        width=16,
        layers=3,
        heads=2,
        mlp_ratio=2.0,
        output_dim=8,
        act_layer=QuickGELU,
    )


def timm_vit():
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, mlp_ratio=2.0, num_classes=0
    )


def transformers_clip():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return CLIPVisionModel(config)


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


VITS = [
    pytest.param(open_clip_tower, "transformer.resblocks.{}.mlp.c_fc", quick_gelu, id="open_clip"),
    pytest.param(timm_vit, "blocks.{}.mlp.fc1", functional.gelu, id="timm"),
    pytest.param(
        transformers_clip, "{prefix}encoder.layers.{}.mlp.fc1", quick_gelu, id="transformers"
    ),
]


def weights_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def trim_row(row, count):
    kept = sorted(range(len(row)), key=lambda i: -abs(row[i].item()))[:count]
    return torch.tensor([row[i].item() if i in kept else 0.0 for i in range(len(row))])


def elect_and_average(vectors):
    mass = sum(vectors)
    agree = [torch.where(mass >= 0, v > 0, v < 0) for v in vectors]
    count = sum(a.float() for a in agree).clamp(min=1)
    return sum(v * a for v, a in zip(vectors, agree, strict=True)) / count


def plainly_trimmed(vector, keep):
    return trim_row(vector.flatten(), math.floor(vector.numel() * keep)).view_as(vector)


def input_of(model, weights, layer, images):
    """The input of a layer in a fresh forward pass with the given weights."""
    model, seen = copy.deepcopy(model).eval(), []
    model.load_state_dict(weights)
    model.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(images)
    return seen[0]


def pre_activations(model, expert, layer, norm, x):
    """What one expert makes of a layer's input, samples and positions by nodes."""
    weight, module = expert[f"{layer}.weight"], model.get_submodule(layer)
    if weight.dim() == 2:
        return (x @ weight.T + expert.get(f"{layer}.bias", 0.0)).flatten(0, -2)
    maps = functional.conv2d(
        x, weight, expert.get(f"{layer}.bias"), module.stride, module.padding, groups=module.groups
    )
    if norm is not None:
        parts = ("running_mean", "running_var", "weight", "bias")
        maps = functional.batch_norm(maps, *(expert[f"{norm}.{part}"] for part in parts))
    return maps.movedim(1, -1).flatten(0, -2)


def algorithm_1(model, base, experts, images, layers, keep, spread, norms=None):
    """Algorithm 1 literally: a forward pass per layer, loops over nodes, rows and experts."""
    base, experts = dict(base), [dict(e) for e in experts.values()]
    first_ranked = {f"{layer}.weight": act for layer, act in layers.items()}
    norms = norms or {}
    of_ranked = (*layers, *norms.values())
    for name in [n for n in base if n not in first_ranked and base[n].is_floating_point()]:
        vectors = [plainly_trimmed(e[name] - base[name], keep) for e in experts]
        merged = base[name] + elect_and_average(vectors)
        if "running" in name:
            merged = sum(e[name] for e in experts) / len(experts)
        if name.rpartition(".")[0] not in of_ranked:
            for weights in (base, *experts):
                weights[name] = merged
        else:  # the experts' own enter the node loss before they are merged
            base[name] = merged
    for name, activation in first_ranked.items():
        layer = name.removesuffix(".weight")
        x = input_of(model, base, layer, images)
        hidden = [pre_activations(model, e, layer, norms.get(layer), x) for e in experts]
        merged_output = activation(sum(hidden) / len(hidden))
        ensemble = sum(activation(h) for h in hidden) / len(hidden)
        loss = (merged_output - ensemble).abs().mean(0).tolist()
        order = sorted(range(len(loss)), key=lambda j: (loss[j], -j))  # first of equals: highest
        update = []
        for j in range(len(loss)):
            ratio = keep - spread * (order.index(j) / (len(loss) - 1))
            rows = [(e[name] - base[name])[j].flatten() for e in experts]
            count = math.floor(ratio * len(rows[0]))
            update.append(elect_and_average([trim_row(row, count) for row in rows]))
        base[name] = base[name] + torch.stack(update).view_as(base[name])
        for weights in experts:
            weights[name] = base[name]
    return base


@pytest.mark.parametrize(("build", "pattern", "activation"), VITS)
def test_one_pass_equals_algorithm_1_on_vits(build, pattern, activation, make_experts):
    torch.manual_seed(0)
    model = build()
    base = weights_of(model)
    prefix = "vision_model." if any(n.startswith("vision_model.") for n in base) else ""
    layers = {pattern.format(i, prefix=prefix): activation for i in range(3)}
    experts = make_experts(3, base)
    images = torch.randn(6, 3, 16, 16)
    analysis = MTies(keep=0.5, spread=0.4).analyse(
        base, experts, Resources(model=model, batches=images)
    )
    assert list(analysis.losses) == [f"{layer}.weight" for layer in layers]
    want = algorithm_1(model, base, experts, images, layers, keep=0.5, spread=0.4)
    for name, tensor in analysis.merged.items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(params=["resnet", "mini_resnet"])
def residual(request, monkeypatch):
    """A ResNet with experts, images, and the BatchNorm behind each convolution before a ReLU."""
    from tiny_networks import zoo_of

    monkeypatch.setattr("lightning_merge.core.networks.m_loss._CHUNK", 500)  # an image at a time
    monkeypatch.setattr("lightning_merge.core.vectors.tiles.TILE", 4000)  # some rows at a time
    model, base, experts = zoo_of(request.param, 3, torch.float64)
    layers = [name.removesuffix(".weight") for name in base if name.endswith("conv1.weight")]
    norms = {layer: layer.replace("conv", "bn") for layer in layers}
    return model, base, experts, torch.randn(5, 3, 16, 16, dtype=torch.float64), norms


def test_one_pass_equals_algorithm_1_on_resnets(residual):
    """Nodes are channels; each expert's own BatchNorm belongs to them."""
    model, base, experts, images, norms = residual
    analysis = MTies(keep=0.6, spread=0.5).analyse(
        base, experts, Resources(model=model, batches=images)
    )
    assert list(analysis.losses) == [f"{layer}.weight" for layer in norms]
    acts = dict.fromkeys(norms, functional.relu)
    want = algorithm_1(model, base, experts, images, acts, 0.6, 0.5, norms)
    for name, tensor in analysis.merged.items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-6, atol=1e-7, msg=name)


def test_channels_are_compared_at_the_base_s_inputs_where_asked(residual):
    model, base, experts, images, norms = residual
    method = MTies(layer_inputs="base")
    losses = method.analyse(base, experts, Resources(model=model, batches=images)).losses
    for layer, norm in norms.items():
        x = input_of(model, base, layer, images)
        rows = [pre_activations(model, expert, layer, norm, x) for expert in experts.values()]
        hidden = torch.stack(rows)
        loss = (hidden.mean(0).relu() - hidden.relu().mean(0)).abs().mean(0)
        torch.testing.assert_close(losses[f"{layer}.weight"], loss)


def test_one_pass_equals_algorithm_1_without_bias(net, base, make_experts, resources):
    layers = {"fc1": functional.gelu, "fc2": torch.tanh}
    experts = make_experts(4)
    merged = MTies(keep=0.6, spread=0.3)(base, experts, **resources)
    inert = {n for n, t in base.items() if not t.is_floating_point() or "running" in n}
    for name in inert:
        base[name] = merged[name]  # statistics and integers are not Algorithm 1's
    want = algorithm_1(
        net, base, {t: e | {n: merged[n] for n in inert} for t, e in experts.items()},
        all_inputs(resources, experts), layers, keep=0.6, spread=0.3,
    )  # fmt: skip
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-4, atol=1e-5, msg=name)


def test_base_inputs_come_from_the_unmerged_network(net, base, make_experts, resources):
    experts = make_experts(4)
    analysis = MTies(layer_inputs="base").analyse(base, experts, Resources(**resources))
    x = input_of(net, base, "fc2", all_inputs(resources, experts))
    hidden = torch.stack([x @ e["fc2.weight"].T for e in experts.values()])
    loss = (hidden.mean(0).tanh() - hidden.tanh().mean(0)).abs().mean(0)
    torch.testing.assert_close(analysis.losses["fc2.weight"], loss)


def test_the_model_comes_back_unchanged(net, base, make_experts, resources):
    net.train()
    net.act1.eval()
    modes = [module.training for module in net.modules()]
    MTies()(base, make_experts(2), **resources)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(t, base[n]) for n, t in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("layer_inputs", ["merged", "base"])
def test_every_tensor_is_merged_once(layer_inputs, base, make_experts, resources, monkeypatch):
    merged = Counter()

    def counting(vectors, name, *rest):
        merged[name] += 1
        return merge_one(vectors, name, *rest)

    monkeypatch.setattr(m_ties, "merge_one", counting)
    monkeypatch.setattr("lightning_merge.methods.streaming.merge_one", counting)
    MTies(layer_inputs=layer_inputs)(base, make_experts(3), **resources)
    assert merged == dict.fromkeys(base, 1)


def test_a_network_in_half_precision_rounds_nothing(net, base, make_experts, resources):
    method, experts = MTies(node_order="uniform"), make_experts(3)
    want = method(base, experts, **resources)
    got = method(
        base, experts, model=copy.deepcopy(net).bfloat16(), batches=all_inputs(resources, experts)
    )
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("layers", [[0], ["fc1"], [-2]])
def test_few_layers_and_plain_trim_elsewhere(layers, base, make_experts, resources):
    experts = make_experts(3)
    analysis = MTies(layers=layers).analyse(base, experts, Resources(**resources))
    assert list(analysis.losses) == ["fc1.weight"]
    plain = Ties(density=0.2, trim="per_tensor")(base, experts)
    assert torch.equal(analysis.merged["fc2.weight"], plain["fc2.weight"])
    assert not torch.equal(analysis.merged["fc1.weight"], plain["fc1.weight"])


def test_a_shared_weight_is_ranked_at_its_first_layer(resources):
    from tiny_networks import TIED, tied_zoo

    model, base, experts = tied_zoo(3)
    data = resources | {"model": model}
    analysis = MTies(keep=0.6, spread=0.5).analyse(base, experts, Resources(**data))
    assert list(analysis.losses) == [TIED[0]]
    only = MTies(keep=0.6, spread=0.5, layers=["blocks.0"]).analyse(
        base, experts, Resources(**data)
    )
    assert torch.equal(analysis.merged[TIED[0]], only.merged[TIED[1]])
    x = all_inputs(resources, experts)
    hidden = torch.stack([x @ e[TIED[0]].T + e["blocks.0.bias"] for e in experts.values()])
    loss = (functional.gelu(hidden.mean(0)) - functional.gelu(hidden).mean(0)).abs().mean(0)
    torch.testing.assert_close(analysis.losses[TIED[0]], loss)


def test_images_of_tasks_without_an_expert_are_left_out(base, make_experts, resources):
    experts = make_experts(2)
    own = {task: resources["batches"][task] for task in experts}
    want = MTies()(base, experts, **resources | {"batches": own})
    got = MTies()(base, experts, **resources)
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    joined = MTies()(base, experts, **resources | {"batches": torch.cat([*own.values()])})
    assert all(torch.equal(joined[name], tensor) for name, tensor in want.items())
    with pytest.raises(InputError, match=r"(?s)M-TIES got inputs of other.*not of task0, task1"):
        MTies()(base, experts, **resources | {"batches": {"other": torch.ones(3, 6)}})


def test_controls(base, make_experts, resources):
    experts = make_experts(3)
    ratios = {
        order: MTies(node_order=order)
        .analyse(base, experts, Resources(**resources))
        .keep_ratios["fc1.weight"]
        for order in ("loss", "random", "uniform", "reversed")
    }
    torch.testing.assert_close(ratios["loss"] + ratios["reversed"], torch.full((16,), 0.3).double())
    torch.testing.assert_close(ratios["random"].sort().values, ratios["loss"].sort().values)
    assert not torch.equal(ratios["random"], ratios["loss"])
    torch.testing.assert_close(ratios["uniform"], torch.full((16,), 0.15).double())
    again = MTies(node_order="random", seed=1).analyse(base, experts, Resources(**resources))
    assert not torch.equal(again.keep_ratios["fc1.weight"], ratios["random"])


def test_transforms_change_the_experts_that_are_ranked(base, make_experts, resources):
    method = MTies(transforms=[LwPTV(prune_ratio=1.0)])
    analysis = method.analyse(base, make_experts(3), Resources(**resources))
    assert all(loss.max() < 1e-6 for loss in analysis.losses.values())
    assert torch.equal(analysis.merged["fc1.weight"], base["fc1.weight"])


def test_prefixes_of_model_and_checkpoint_may_differ(base, make_experts, resources):
    experts = make_experts(3)
    want = MTies()(base, experts, **resources)
    renamed = {f"model.visual.{n}": t for n, t in base.items()}
    there = {k: {f"model.visual.{n}": t for n, t in e.items()} for k, e in experts.items()}
    merged = MTies()(renamed, there, **resources)
    assert all(torch.equal(merged[f"model.visual.{n}"], t) for n, t in want.items())


class FunctionalNet(nn.Module):
    """An encoder whose activation is a function, seen by no hook."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.second(functional.silu(self.first(x)))


def test_own_encoder_names_layers_and_activation(make_experts, resources):
    net = FunctionalNet()
    base = weights_of(net)
    call = (base, make_experts(3, base))
    data = resources | {"model": net}
    method = MTies(layers=["first"], activation="silu")
    assert list(method.analyse(*call, Resources(**data)).losses) == ["first.weight"]
    with pytest.raises(InputError, match="no activation module follows 'first'"):
        MTies(layers=["first"])(*call, **data)
    with pytest.raises(InputError, match="layers=None"):
        MTies()(*call, **data)


@pytest.mark.parametrize(
    "options",
    [
        {"keep": 1.2},
        {"spread": 0.3},
        {"layer_inputs": "x"},
        {"reduce": "x"},
        {"node_order": "x"},
        {"activation": "x"},
        {"combine": "x"},
        {"trim": "x"},
        {"scale": float("nan")},
    ],
)
def test_bad_options_name_the_argument(options):
    with pytest.raises(InputError, match=next(iter(options))):
        MTies(**options)


@pytest.mark.parametrize(
    ("options", "resource", "message"),
    [
        ({}, {"model": None}, "model=None"),
        ({}, {"batches": None}, "batches"),
        ({"layers": ["fc9"]}, {}, "fc9"),
        ({"layers": ["norm"]}, {}, "norm"),
        ({"layers": [2]}, {}, "position 2 is out of range; 2 layers"),
        ({}, {"model": FunctionalNet()}, "layers"),
    ],
)
def test_bad_resources(options, resource, message, base, make_experts, resources):
    with pytest.raises(InputError, match=message):
        MTies(**options)(base, make_experts(2), **resources | resource)
