"""WEMoE against the published implementation, task arithmetic, and networks of one image each."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.losses import entropy
from lightning_merge.core.networks.mlps import find_mlps
from lightning_merge.methods import LwPTV, TaskArithmetic
from lightning_merge.methods.network import load_network, save_network
from lightning_merge.methods.wemoe import RoutedMLP, WEMoE

TASKS = ("task0", "task1", "task2")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def open_clip_tower(size=8, width=16, layers=2):
    from open_clip.transformer import QuickGELU, VisionTransformer

    return VisionTransformer(
        image_size=size, patch_size=4, width=width, layers=layers, heads=2, mlp_ratio=2.0,
        output_dim=6, act_layer=QuickGELU,
    )  # fmt: skip


def timm_vit():
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0, num_classes=0
    )


def transformers_clip():
    from lightning_merge.models import TransformersEncoder

    config = {
        "image_size": 8, "patch_size": 4, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2,
    }  # fmt: skip
    return TransformersEncoder(config).backbone


VITS = {
    "open_clip": (open_clip_tower, "transformer.resblocks.{}.mlp"),
    "timm": (timm_vit, "blocks.{}.mlp"),
    "transformers": (transformers_clip, "encoder.layers.{}.mlp"),
}


@pytest.fixture(params=VITS)
def vit(request):
    torch.manual_seed(0)
    return VITS[request.param][0]().eval()


@pytest.fixture
def given(vit):
    """Base, experts and what the method needs."""
    torch.manual_seed(1)
    base = {name: tensor.detach().clone() for name, tensor in vit.state_dict().items()}
    experts = {
        task: {n: t + 0.05 * torch.randn_like(t) if t.is_floating_point() else t for n, t in
               base.items()}
        for task in TASKS
    }  # fmt: skip
    with torch.no_grad():
        dim = vit(torch.zeros(1, 3, 8, 8)).shape[1]
    return (base, experts), {
        "model": vit,
        "batches": {task: torch.randn(6, 3, 8, 8) for task in TASKS},
        "heads": {task: nn.Linear(dim, 4).requires_grad_(False) for task in TASKS},
    }


@pytest.mark.parametrize("kind", VITS)
def test_mlps_are_found_by_their_place(kind):
    make, name = VITS[kind]
    found, batch_dim = find_mlps(make(), torch.randn(1, 3, 8, 8))
    assert {n[n.index(name[:6]) :]: sizes for n, sizes in found.items()} == {
        name.format(block): (16, 5) for block in range(2)
    }
    assert batch_dim == 0


def test_constant_routers_make_task_arithmetic(vit, given):
    weights, resources = given
    network = WEMoE(steps=0, scale=0.4, prior=0.4, transforms=[LwPTV(0.3)])(*weights, **resources)
    with torch.no_grad():
        for _, mlp in network.routed():
            mlp.gate[2].weight.zero_()
            assert mlp.gate[2].bias.tolist() == pytest.approx([0.4] * 3)
    merged = TaskArithmetic(0.4, transforms=[LwPTV(0.3)])(*weights)
    images = resources["batches"]["task1"]
    with torch.no_grad():
        expected = functional_call(vit, merged, (images,))
        found = network.logits("any", images, nn.Identity())
    torch.testing.assert_close(found, expected, **CLOSE)


def test_every_image_has_weights_of_its_own(vit, given):
    """Weights made by hand from the router's output, for one image at a time."""
    weights, resources = given
    base, experts = weights
    network = WEMoE(steps=0)(*weights, **resources)
    images, (first, mlp) = resources["batches"]["task0"], next(iter(network.routed()))
    with torch.no_grad():
        mlp.gate[2].weight.mul_(100)  # far from the prior
    together = network.logits("any", images, nn.Identity())
    for image, found in zip(images, together, strict=True):
        seen = []
        hook = mlp.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        alone = network.logits("any", image[None], nn.Identity())
        hook.remove()
        torch.testing.assert_close(alone[0], found, **CLOSE)
        tokens = seen[0][0]
        with torch.no_grad():
            rates = mlp.gate(tokens).mean(0)
            assert rates.std() > 1e-3
            merged = {
                own: base[f"{first}.{own}"]
                + sum(
                    rate * (expert[f"{first}.{own}"] - base[f"{first}.{own}"])
                    for rate, expert in zip(rates, experts.values(), strict=True)
                )
                for own in mlp.sizes
            }
            expected = functional_call(vit.get_submodule(first), merged, (tokens,))
            torch.testing.assert_close(mlp(seen[0])[0], expected, **CLOSE)


@pytest.mark.parametrize("batch_dim", [0, 1])
def test_gradients_are_those_of_weights_made_in_one_graph(batch_dim):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5))
    routed = RoutedMLP(copy.deepcopy(inner).requires_grad_(False), 5, 2, batch_dim)
    routed.reset(0.3, torch.Generator().manual_seed(1))
    routed.vectors.copy_(torch.randn_like(routed.vectors))
    tokens = torch.randn(3, 4, 5)
    samples = tokens if batch_dim == 0 else tokens.transpose(0, 1)
    routed(tokens).square().sum().backward()
    found = [parameter.grad.clone() for parameter in routed.gate.parameters()]
    routed.gate.zero_grad()
    total = 0.0
    for sample in samples:
        rates, start, weights = routed.gate(sample).mean(0), 0, {}
        for name, parameter in inner.named_parameters():
            part = routed.vectors[:, start : start + parameter.numel()]
            start += parameter.numel()
            weights[name] = parameter + (rates[:, None] * part).sum(0).view(parameter.shape)
        total = total + functional_call(inner, weights, (sample,)).square().sum()
    total.backward()
    for one, parameter in zip(found, routed.gate.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-4)


def test_learning_moves_the_routers_alone_and_lowers_the_entropy(given):
    weights, resources = given
    start, end, again = (
        WEMoE(steps=steps, learning_rate=0.01, batch_size=4)(*weights, **resources)
        for steps in (0, 8, 8)
    )

    def mean_entropy(network):
        every = [
            entropy(network.logits(t, resources["batches"][t], resources["heads"][t])).mean()
            for t in TASKS
        ]
        return float(sum(every))

    assert mean_entropy(end) < mean_entropy(start)
    before, after, same = (network.state_dict() for network in (start, end, again))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".mlp.gate." in name for name in changed)
    assert all(torch.equal(after[name], same[name]) for name in after)
    assert not any(parameter.requires_grad for parameter in end.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision(vit, given, dtype):
    """Routers are learned in float32, whose smallest steps half precision does not have."""
    (base, experts), resources = given
    half = {
        name: {n: t.to(dtype) if t.is_floating_point() else t for n, t in weights.items()}
        for name, weights in {"base": base, **experts}.items()
    }
    given = {
        **resources,
        "model": copy.deepcopy(vit).to(dtype),
        "heads": {t: copy.deepcopy(head).to(dtype) for t, head in resources["heads"].items()},
    }
    base = half.pop("base")
    start, end = (
        WEMoE(steps=steps, learning_rate=1e-4, batch_size=4)(base, half, **given)
        for steps in (0, 3)
    )
    images = resources["batches"]["task0"].to(dtype)
    logits = end.logits("task0", images, given["heads"]["task0"])
    assert logits.dtype == dtype
    assert bool(logits.isfinite().all())
    for (_, old), (_, new) in zip(start.routed(), end.routed(), strict=True):
        assert new.vectors.dtype == dtype
        for after in new.gate.parameters():
            assert after.dtype == torch.float32
            assert bool(after.isfinite().all())
        assert not torch.equal(old.gate[2].bias, new.gate[2].bias)


def test_learning_that_diverges_is_an_error(given):
    weights, resources = given
    with pytest.raises(InputError, match=r"learning_rate=1e\+30: .*; lower it"):
        WEMoE(steps=5, learning_rate=1e30)(*weights, **resources)


def test_the_callers_modules_get_no_gradients(given):
    weights, resources = given
    modules = [resources["model"], *resources["heads"].values()]
    for module in modules:
        module.requires_grad_(True)
    WEMoE(steps=2)(*weights, **resources)
    assert all(p.grad is None for module in modules for p in module.parameters())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))


class Towers(nn.Module):
    """Two towers of blocks; the images go through the second one, as often as is asked for."""

    def __init__(self, passes=1, sees="all"):
        super().__init__()
        self.text, self.visual = (nn.ModuleList([Block(), Block()]) for _ in range(2))
        self.passes, self.sees = passes, sees

    def forward(self, x):
        out = {"all": x, "folded": x.flatten(0, 1), "first": x[:1]}[self.sees]
        for _ in range(self.passes):
            for block in self.visual:
                out = out + block.mlp(out)
        return out.reshape(-1, *x.shape[1:]).expand_as(x).mean(1)


def towers_and_weights(**options):
    torch.manual_seed(0)
    net = Towers(**options)
    base = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    experts = {task: {n: t + 0.1 * torch.randn_like(t) for n, t in base.items()} for task in TASKS}
    given = {
        "model": net,
        "batches": {task: torch.randn(4, 5, 6) for task in TASKS},
        "heads": {task: nn.Linear(6, 3) for task in TASKS},
    }
    return (base, experts), given


def test_mlps_that_no_image_goes_through_are_merged_as_all_else():
    weights, given = towers_and_weights()
    network = WEMoE(steps=1)(*weights, **given)
    assert [name for name, _ in network.routed()] == ["visual.0.mlp", "visual.1.mlp"]
    merged, state = TaskArithmetic(0.3)(*weights), network.network.state_dict()
    for name in (name for name in merged if name.startswith("text")):
        assert torch.equal(state[name], merged[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 0}, "Towers: none of its MLPs is called"),
        ({"passes": 2}, "Towers: visual.0.mlp is called 2 times"),
        ({"sees": "folded"}, r"Towers: its MLPs take inputs of shapes \[\[10, 6\], \[10, 6\]\]"),
        ({"sees": "first"}, r"Towers: its MLPs take inputs of shapes \[\[1, 5, 6\]"),
    ],
)
def test_mlps_that_cannot_be_routed(options, message):
    weights, given = towers_and_weights(**options)
    with pytest.raises(InputError, match=message):
        WEMoE(steps=1)(*weights, **given)


def test_copies_of_the_base_answer_as_the_base(vit, given):
    (base, _), resources = given
    network = WEMoE(steps=1)(base, dict.fromkeys(TASKS, base), **resources)
    images = resources["batches"]["task0"]
    with torch.no_grad():
        found, expected = network.logits("any", images, nn.Identity()), vit(images)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_the_network_of_a_file_is_the_one_that_was_saved(tmp_path, vit, given):
    weights, resources = given
    network = WEMoE(steps=1)(*weights, **resources)
    path = save_network(network, tmp_path / "n.safetensors", metadata={})
    loaded, images = load_network(path, vit), resources["batches"]["task0"]
    head = resources["heads"]["task0"]
    expected = network.logits("task0", images, head)
    assert torch.equal(loaded.logits("task0", images, head), expected)
    assert loaded.extra_parameters == network.extra_parameters
    assert loaded.inference_cost == network.inference_cost


def test_what_it_stores_and_takes(vit, given):
    weights, resources = given
    network = WEMoE(steps=0)(*weights, **resources)
    mlp = 16 * 32 + 32 + 32 * 16 + 16
    gate = 16 * 16 + 16 + 16 * 3 + 3
    assert network.extra_parameters == 2 * (3 * mlp + gate)
    one_pass = 5 * sum(tensor.numel() for tensor in vit.state_dict().values())
    assert network.inference_cost == pytest.approx(1 + 2 * (5 * gate + 3 * mlp) / one_pass)


def test_statistics_are_those_of_the_merged_network(given):
    """What is measured of the merged weights is kept outside of the MLPs."""
    weights, resources = given
    asked = {}

    def recalibrate(state, task=None):
        asked[task] = state
        return {name: t + 1 if t.is_floating_point() else t for name, t in state.items()}

    network = WEMoE(steps=0)(*weights, **resources, recalibrate=recalibrate)
    assert list(asked) == [None]
    state = network.network.state_dict()
    outside = [name for name, t in asked[None].items() if ".mlp." not in name]
    assert len(outside) > 10
    for name in outside:
        if state[name].is_floating_point():
            assert torch.equal(state[name], asked[None][name] + 1)


def test_a_network_without_mlps_is_refused(base, make_experts, resources):
    with pytest.raises(InputError, match="TinyNet: WEMoE routes MLPs"):
        WEMoE()(base, make_experts(2), **resources)


@pytest.mark.parametrize("missing", ["batches", "heads"])
def test_what_it_needs_is_asked_for(given, missing):
    weights, resources = given
    with pytest.raises(InputError, match=f"{missing}.*WEMoE"):
        WEMoE()(*weights, **{**resources, missing: None})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"scale": float("nan")}, "scale=nan"), ({"prior": float("inf")}, "prior=inf"),
     ({"steps": -1}, "steps=-1"), ({"learning_rate": -1.0}, "learning_rate=-1.0")],
)  # fmt: skip
def test_bad_hyperparameters_show_at_once(options, message):
    with pytest.raises(InputError, match=message):
        WEMoE(**options)


@pytest.mark.shared
def test_parity_with_the_published_implementation(zoo, expected):
    """One routed MLP in the published order of dimensions, tokens before samples."""
    base, experts, _ = zoo
    stored = expected("wemoe_block1")
    heads = {task: nn.Linear(32, 2) for task in experts}
    images = {task: torch.zeros(1, 3, 32, 32) for task in experts}
    from open_clip.transformer import QuickGELU, VisionTransformer

    tower = VisionTransformer(
        image_size=32, patch_size=8, width=64, layers=4, heads=4, mlp_ratio=4.0, output_dim=32,
        act_layer=QuickGELU,
    )  # fmt: skip
    network = WEMoE(steps=0)(base, experts, model=tower, batches=images, heads=heads)
    routed = dict(network.routed())["transformer.resblocks.1.mlp"]
    routed.batch_dim = 1
    published = {"0": "fc1", "2": "fc2"}
    routed.gate.load_state_dict(
        {f"{i}.{n}": stored[f"gate.{fc}.{n}"] for i, fc in published.items() for n in
         ("weight", "bias")}
    )  # fmt: skip
    found = routed(stored["x_LND"])
    torch.testing.assert_close(found, stored["y_LND"], rtol=0, atol=1e-5)
