"""Pruning by magnitude, by chance and by layer: what is dropped, and how much."""

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.task_vectors import TaskVectors, flatten_tasks
from lightning_merge.methods import Dare, LwPTV
from lightning_merge.methods.pruning import (
    AbsolutePruning,
    MagnitudePruning,
    RandomLayers,
    RandomPruning,
)

ALL = [MagnitudePruning, RandomPruning, AbsolutePruning]


@pytest.fixture
def vectors(base, make_experts):
    return TaskVectors(base, make_experts(3))


def flat(vectors):
    """All entries of every expert, [K, d]."""
    return torch.cat([flatten_tasks(vectors[name]) for name in vectors.names], dim=1)


@pytest.mark.parametrize("ratio", [0.1, 0.7, 0.9])
def test_magnitude_drops_the_smallest_entries_of_each_expert(ratio, vectors):
    before, after = flat(vectors), flat(MagnitudePruning(ratio)(vectors))
    pruned = int(before.shape[1] * ratio)
    for whole, kept in zip(before, after, strict=True):
        dropped = whole.abs().argsort()[:pruned]
        assert torch.equal(kept, whole.scatter(0, dropped, 0.0))


@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_random_drops_what_dare_drops_without_rescaling(ratio, vectors):
    masked, rescaled = (flat(t(ratio, seed=3)(vectors)) for t in (RandomPruning, Dare))
    kept = masked != 0
    assert torch.equal(masked, flat(vectors) * kept)
    assert torch.equal(kept, rescaled != 0)


def test_random_drops_the_stated_share():
    base = {"w": torch.zeros(300, 300)}
    vectors = TaskVectors(base, {task: {"w": torch.ones(300, 300)} for task in ("a", "b")})
    kept = RandomPruning(0.7)(vectors)["w"]
    torch.testing.assert_close(kept.mean((1, 2)), torch.full((2,), 0.3), rtol=0, atol=0.01)
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept, RandomPruning(0.7, seed=1)(vectors)["w"])


@pytest.mark.parametrize("ratio", [0.2, 0.7])
def test_absolute_drops_the_layers_of_small_mean_by_task(ratio, vectors):
    means = {n: flatten_tasks(vectors[n]).abs().sum(1) / max(vectors.numel(n), 1)
             for n in vectors.names}  # fmt: skip
    pruned, after = int(len(means) * ratio) + 1, AbsolutePruning(ratio)(vectors)
    for task in range(3):
        dropped = sorted(means, key=lambda n, k=task: float(means[n][k]))[:pruned]
        for name in vectors.names:
            want = vectors[name][task] * (name not in dropped)
            assert torch.equal(after[name][task], want)


@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9])
def test_random_layers_are_as_many_as_those_of_lwptv_and_any(ratio):
    generator = torch.Generator().manual_seed(0)
    base = {f"layer{i}": torch.zeros(3) for i in range(12)}
    experts = {task: {n: torch.randn(3, generator=generator) for n in base} for task in "abc"}
    vectors = TaskVectors(base, experts)

    def kept(transform):
        return [name for name in base if transform(vectors)[name].any()]

    draws = [kept(RandomLayers(ratio, seed=seed)) for seed in range(8)]
    assert {len(names) for names in draws} == {len(kept(LwPTV(ratio)))}
    assert len(set(map(tuple, draws))) > 1
    assert all(torch.equal(RandomLayers(ratio)(vectors)[n], vectors[n]) for n in draws[0])


def test_random_layers_of_a_tower_are_those_within_a_larger_model(base, make_experts, vectors):
    def named(weights):
        return {f"visual.{name}": tensor for name, tensor in weights.items()}

    experts = {task: named(expert) for task, expert in make_experts(3).items()}
    within = RandomLayers(0.7)(TaskVectors(named(base), experts))
    alone = RandomLayers(0.7)(vectors)
    assert all(torch.equal(within[f"visual.{name}"], alone[name]) for name in vectors.names)


def test_of_a_single_expert_all_layers_are_kept(base, make_experts):
    single = TaskVectors(base, make_experts(1))
    assert RandomLayers(0.7)(single) is single


@pytest.mark.parametrize("cls", ALL)
def test_bounds_of_the_ratio(cls, vectors):
    assert torch.equal(flat(cls(0.0)(vectors)), flat(vectors))
    assert not flat(cls(1.0)(vectors)).any()


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_bad_ratio(cls, ratio):
    with pytest.raises(InputError, match="prune_ratio"):
        cls(ratio)
