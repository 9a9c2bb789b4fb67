"""Methods that run a network, on texts: padding takes no part, and pairs count as two texts."""

import pytest
import torch
from tiny_texts import network

from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.mergeability import mergeability
from lightning_merge.methods import Fisher, MTies, RegMean, RegMeanPlusPlus
from lightning_merge.models import CosineHead, TextEncoder

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
