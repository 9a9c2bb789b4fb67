"""Experts that can be merged but are probably not the intended ones."""

import pytest
import torch

from lightning_merge.core.vectors.suspicions import suspicions
from lightning_merge.core.vectors.task_vectors import TaskVectors


def network(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "stem.weight": torch.randn(40, 30, generator=generator) / 5,
        "fc.weight": torch.randn(9, 40, generator=generator) / 6,
        "norm.weight": torch.ones(40),
        "steps": torch.tensor(seed),
    }


def tuned(base, seed, size=0.02):
    generator = torch.Generator().manual_seed(100 + seed)
    moved = {n: t + size * torch.randn(t.shape, generator=generator) for n, t in base.items()}
    return moved | {"steps": base["steps"]}


def told(base, **experts):
    return [*suspicions(TaskVectors(base, experts))]


@pytest.mark.parametrize("size", [1e-6, 0.001, 0.02, 0.3])
def test_fine_tuned_experts_are_not_suspected(size):
    base = network(0)
    assert told(base, a=tuned(base, 1, size), b=tuned(base, 2, size)) == []


@pytest.mark.parametrize("copies", [1, 2])
def test_the_base_as_an_expert(copies):
    base = network(0)
    others = {"b": tuned(base, 1)} if copies == 1 else {}
    found = told(base, **{f"a{k}": base for k in range(copies)}, **others)
    assert len(found) == copies
    assert all("has the weights of the base" in text for text in found)


@pytest.mark.parametrize("as_type", [torch.float32, torch.float64])
def test_one_expert_twice(as_type):
    base = network(0)
    expert = tuned(base, 1)
    again = {n: t.to(as_type) if t.is_floating_point() else t for n, t in expert.items()}
    (text,) = told(base, a=expert, b=tuned(base, 2), c=again)
    assert "'a' and 'c' have the same weights" in text


def test_experts_that_differ_in_the_end_alone_are_two():
    base = {"w": torch.randn(100, 100)}
    one = {"w": base["w"] + 0.01}
    other = {"w": one["w"].clone()}
    other["w"][-1, -1] += 1
    assert told(base, a=one, b=other) == []


def test_an_expert_that_differs_from_the_base_in_the_end_alone_is_one():
    base = {"w": torch.randn(100, 100)}
    expert = {"w": base["w"].clone()}
    expert["w"][-1, -1] += 1
    assert told(base, a=expert) == []


@pytest.mark.parametrize("factor", [0.7, 1.0, 3.0])
def test_an_unrelated_network(factor):
    base = network(0)
    other = {n: factor * t if t.is_floating_point() else base[n] for n, t in network(1).items()}
    (text,) = told(base, a=tuned(base, 1), b=other)
    assert "'b' looks like an unrelated network" in text


def test_what_is_not_finite_is_left_to_those_who_check_it():
    base = network(0)
    broken = tuned(base, 1)
    broken["fc.weight"][0, 0] = torch.nan
    assert told(base, a=broken, b=tuned(base, 2)) == []
