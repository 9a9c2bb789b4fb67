"""DARE: rate, expectation, and independence from the order of reading."""

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.methods import Dare


@pytest.fixture
def vectors():
    weights = torch.arange(1.0, 30_001).view(100, 300) / 30_000
    experts = {task: {"a": weights, "b": -weights} for task in ("x", "y")}
    return TaskVectors({"a": 0 * weights, "b": 0 * weights}, experts)


def test_keeps_at_the_rate_and_rescales(vectors):
    dropped, whole = Dare(drop=0.9)(vectors)["a"], vectors["a"]
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] * 10)
    assert kept.float().mean().item() == pytest.approx(0.1, abs=0.01)


def test_expectation_is_unchanged(vectors):
    mean = sum(Dare(drop=0.5, seed=seed)(vectors)["a"] for seed in range(200)) / 200
    torch.testing.assert_close(mean.mean(), vectors["a"].mean(), rtol=2e-3, atol=0)
    assert (mean - vectors["a"]).abs().max() < 0.5


def test_depends_on_seed_task_and_name_only(vectors):
    kept = {n: Dare(seed=1)(vectors)[n] != 0 for n in ("b", "a")}
    alone = TaskVectors(vectors.base, {"y": vectors.stored.experts["y"]})
    assert torch.equal(Dare(seed=1)(alone)["a"][0] != 0, kept["a"][1])
    others = [kept["b"][1], kept["a"][0], Dare(seed=2)(vectors)["a"][1] != 0]
    assert not any(torch.equal(other, kept["a"][1]) for other in others)


@pytest.mark.parametrize("drop", [-0.1, 1.0, float("nan")])
def test_bad_probability(drop):
    with pytest.raises(InputError, match="drop"):
        Dare(drop=drop)
