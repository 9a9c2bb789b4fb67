"""Methods that run a network, on texts: padding takes no part, and pairs count as two texts."""

import pytest
import torch
from tiny_texts import network, t5

from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.mergeability import mergeability
from lightning_merge.methods import Fisher, MTies, RegMean, RegMeanPlusPlus, TaskArithmetic, WEMoE
from lightning_merge.methods.network import load_network, save_network
from lightning_merge.models import CosineHead, T5Encoder, TextEncoder

WIDTH = 7


@pytest.fixture
def zoo(tmp_path):
    """An encoder, its base and two experts, and ids of texts of different lengths by task."""
    states = {}
    for seed, name in enumerate(("base", "a", "b")):
        network(tmp_path / name, seed=seed)
        encoder = TextEncoder(str(tmp_path / name), max_length=24)
        states[name] = {n: t.clone() for n, t in encoder.backbone.state_dict().items()}
    for name in ("a", "b"):  # near the base
        states[name] = {n: states["base"][n] + 0.1 * t for n, t in states[name].items()}
    generator = torch.Generator().manual_seed(0)
    ids = {}
    for task, length in (("a", 4), ("b", 6)):
        rows = torch.randint(5, 20, (8, WIDTH), generator=generator)
        rows[:, 0] = 2
        lengths = torch.randint(2, length + 1, (8, 1), generator=generator)
        ids[task] = rows.masked_fill(torch.arange(WIDTH) >= lengths, 0)
    base = states.pop("base")
    encoder.backbone.load_state_dict(base)
    return encoder.backbone, base, states, ids


def padded(ids, more):
    return {task: torch.nn.functional.pad(own, (0, more)) for task, own in ids.items()}


def heads():
    generator = torch.Generator().manual_seed(1)
    return {task: CosineHead(torch.randn(2, 16, generator=generator), 20.0) for task in "ab"}


@pytest.mark.parametrize(
    "method", [RegMean(), RegMeanPlusPlus(), MTies(), Fisher()], ids=lambda m: type(m).__name__
)
def test_padding_takes_no_part(zoo, method):
    model, base, experts, ids = zoo
    one, other = (
        method(base, experts, model=model, batches=padded(ids, more), heads=heads())
        for more in (0, 5)
    )
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=1e-5, rtol=1e-4)


def test_rows_of_padding_would_change_regmean(zoo):
    """The law above can fail: a network without a notion of padding counts every position."""
    model, base, experts, ids = zoo
    one = RegMean()(base, experts, model=model, batches=ids)
    model.pad = -1
    other = RegMean()(base, experts, model=model, batches=ids)
    name = "encoder.layer.1.output.dense.weight"
    assert not torch.allclose(one[name], other[name], atol=1e-4)


def test_fisher_has_weights_for_every_text(zoo):
    model, base, experts, ids = zoo
    merged = Fisher()(base, experts, model=model, batches=ids, heads=heads())
    mean = {n: (experts["a"][n] + experts["b"][n]) / 2 for n in base}
    name = "encoder.layer.0.intermediate.dense.weight"
    assert merged[name].isfinite().all()
    assert not torch.allclose(merged[name], mean[name], atol=1e-4)


def test_padding_takes_no_part_in_m_loss(zoo):
    model, base, experts, ids = zoo
    one, other = (
        mergeability(base, experts, model, torch.cat([*padded(ids, more).values()]))
        for more in (0, 5)
    )
    assert len(one.layers) == 3  # two of GELU, and the pooler's
    for name, layer in one.layers.items():
        torch.testing.assert_close(
            layer.all.node, other.layers[name].all.node, atol=1e-6, rtol=1e-4
        )


def test_pairs_beside_single_texts_count_as_two(zoo):
    model, base, experts, ids = zoo
    pairs = {"a": ids["a"].unflatten(0, (4, 2)), "b": ids["b"]}
    for method in (MTies(), RegMean()):
        one = method(base, experts, model=model, batches=ids)
        other = method(base, experts, model=model, batches=pairs)
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], atol=1e-6, rtol=1e-5)


def test_fisher_says_which_networks_it_cannot_run(zoo):
    model, base, experts, ids = zoo

    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, inputs):
            features = self.inner(inputs)
            return features if features.sum() > 0 else -features

    named = [{f"inner.{n}": t for n, t in own.items()} for own in (base, *experts.values())]
    with pytest.raises(InputError, match="model=Branching: Fisher runs it with weights of its own"):
        Fisher()(
            named[0],
            dict(zip("ab", named[1:], strict=True)),
            model=Branching(),
            batches=ids,
            heads=heads(),
        )


def of_kind(folder, kind):
    """Return an encoder of a kind, its base, two experts near it, and ids."""
    if kind == "t5":
        t5(folder / kind)
        encoder = T5Encoder(str(folder / kind), max_length=24)
    else:
        network(folder / kind, kind)
        encoder = TextEncoder(str(folder / kind), max_length=24)
    base = {n: t.clone() for n, t in encoder.backbone.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    experts = {
        task: {
            n: t + 0.1 * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
            for n, t in base.items()
        }
        for task in "ab"
    }
    texts = torch.tensor([[2, 5, 11, 3], [2, 9, 3, 0], [2, 6, 12, 3]])
    if kind == "t5":  # a prompt and two answers
        texts = torch.stack([texts, texts.flip(0), texts.roll(1, 0)], 1)
    return encoder.backbone, base, experts, {"a": texts, "b": texts.flip(0)}


@pytest.mark.parametrize(
    ("kind", "mlps"),
    [
        ("bert", 2),
        ("roberta", 2),
        ("distilbert", 2),
        ("deberta-v2", 2),
        ("modernbert", 2),
        ("t5", 4),
    ],
)
def test_wemoe_with_constant_routers_is_task_arithmetic(tmp_path, kind, mlps):
    """MLPs in one module, and in two as BERT's, whose layers have their own task vectors."""
    model, base, experts, ids = of_kind(tmp_path, kind)
    network = WEMoE(steps=0, scale=0.4, prior=0.4)(
        base, experts, model=model, batches=ids, heads=heads()
    )
    routed = [name for name, _ in network.routed()]
    assert len(routed) == mlps
    for _, mlp in network.routed():
        mlp.gate[2].weight.zero_()
        assert sum(shape.numel() for shape in mlp.sizes.values()) >= 2 * 16 * 24
    merged = TaskArithmetic(0.4)(base, experts)
    with torch.no_grad():
        found = network.logits("a", ids["a"], torch.nn.Identity())
        expected = torch.func.functional_call(model, merged, (ids["a"],))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, model(ids["a"]), atol=1e-2)


def test_wemoe_learns_on_texts_and_pairs_without_their_padding(zoo, tmp_path):
    model, base, experts, ids = zoo
    pairs = {"a": ids["a"], "b": torch.stack([ids["b"], ids["b"].flip(0)], 1)}
    resources = {"heads": {"a": heads()["a"], "b": CosineHead(torch.randn(2, 32), 20.0)}}
    method = WEMoE(steps=3, learning_rate=0.01, batch_size=4)
    one, other = (
        method(base, experts, model=model, batches=padded(pairs, more), **resources)
        for more in (0, 5)
    )
    for (name, mlp), (_, same) in zip(one.routed(), other.routed(), strict=True):
        for after, again in zip(mlp.gate.parameters(), same.gate.parameters(), strict=True):
            torch.testing.assert_close(after, again, atol=1e-4, rtol=1e-3, msg=name)
    path = save_network(one, tmp_path / "routed.safetensors", metadata={})
    loaded, head = load_network(path, model), resources["heads"]["b"]
    expected = one.logits("b", pairs["b"], head)
    assert torch.equal(loaded.logits("b", pairs["b"], head), expected)


def test_wemoe_routes_every_text_by_its_own_tokens(zoo):
    """Weights made by hand from the router's output on one text without padding."""
    model, base, experts, ids = zoo
    network = WEMoE(steps=0)(base, experts, model=model, batches=ids, heads=heads())
    first, mlp = next(iter(network.routed()))
    assert first == "encoder.layer.0.output.dense"
    mlp.gate[2].weight.mul_(100)
    seen, rates = [], []
    hooks = [
        mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        mlp.register_forward_hook(lambda _, args, output: seen.append(output)),
        mlp.gate.register_forward_hook(lambda _, args, output: rates.append(output)),
    ]
    row = next(row for row in ids["a"] if (row == 0).sum() > 3)
    network.logits("a", row[None], torch.nn.Identity())
    for hook in hooks:
        hook.remove()
    tokens, found = seen[:2]
    own = rates[0][0, row != 0].mean(0)
    weights = {
        name: base[name]
        + sum(r * (experts[t][name] - base[name]) for r, t in zip(own, "ab", strict=True))
        for place in ("intermediate.dense", "output.dense")
        for name in (f"encoder.layer.0.{place}.weight", f"encoder.layer.0.{place}.bias")
    }
    inside, outside, *biases = (
        weights[f"encoder.layer.0.{place}.dense.{kind}"]
        for kind in ("weight", "bias")
        for place in ("intermediate", "output")
    )
    hidden = torch.nn.functional.gelu(tokens @ inside.T + biases[0])
    torch.testing.assert_close(found, hidden @ outside.T + biases[1], rtol=1e-4, atol=1e-5)
    assert own.std() > 1e-3
