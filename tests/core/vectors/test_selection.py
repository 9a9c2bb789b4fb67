"""Exact selection against sorting, on distributions that mislead a sample."""

import pytest
import torch

from lightning_merge.core.vectors import selection
from lightning_merge.core.vectors.selection import kth_smallest, kth_smallest_magnitude, largest
from lightning_merge.core.vectors.task_vectors import TaskVectors


def normal(size, generator):
    return torch.randn(size, generator=generator)


def heavy(size, generator):
    return torch.randn(size, generator=generator) / torch.rand(size, generator=generator)


def few_values(size, generator):
    return torch.randint(-3, 4, (size,), generator=generator).float()


def mostly_zero(size, generator):
    return torch.randn(size, generator=generator) * (torch.rand(size, generator=generator) > 0.9)


def growing(size, generator):
    return torch.logspace(-20, 20, size)


def hidden_from_the_sample(size, generator):
    """Small where blocks are read, large elsewhere, or the other way round."""
    values = torch.randn(size, generator=generator).abs() + 1
    values.view(-1, selection.BLOCK)[::2] *= 1e-6
    return values


def subnormal(size, generator):
    return torch.randn(size, generator=generator) * 1e-42


SIZE = 2**17
DRAWS = [normal, heavy, few_values, mostly_zero, growing, hidden_from_the_sample, subnormal]


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.8, 1.0])
def test_is_what_sorting_finds(draw, dtype, share):
    generator = torch.Generator().manual_seed(0)
    parts = {"a": SIZE // 2, "b": SIZE // 4 - 1, "scalar": 1, "c": SIZE // 4}
    rows = [draw(SIZE, generator).to(dtype) for _ in range(3)]
    experts = {
        f"e{k}": dict(zip(parts, row.split([*parts.values()]), strict=True))
        for k, row in enumerate(rows)
    }
    base = {name: torch.zeros(size, dtype=dtype) for name, size in parts.items()}
    vectors = TaskVectors(base, experts, jobs=2)
    rank = max(1, int(share * SIZE))
    value, less = kth_smallest_magnitude(vectors, vectors.names, rank)
    for k, row in enumerate(rows):
        want = row.abs().sort().values[rank - 1]
        assert value[k] == want
        assert less[k] == (row.abs() < want).sum()


@pytest.mark.parametrize("draw", [normal, heavy, few_values, mostly_zero], ids=lambda d: d.__name__)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.97, 1.0])
def test_signed_entries_as_sorting_finds_them(draw, share):
    generator = torch.Generator().manual_seed(0)
    rows = [draw(SIZE, generator), draw(SIZE, generator) - 2, draw(SIZE, generator) + 0.5]
    split = {f"e{k}": {"a": r[:5], "none": r[:0], "b": r[5:]} for k, r in enumerate(rows)}
    base = {"a": torch.zeros(5), "none": torch.zeros(0), "b": torch.zeros(SIZE - 5)}
    vectors = TaskVectors(base, split, jobs=2)
    rank, ordered = max(1, int(share * SIZE)), torch.stack(rows).sort(dim=1).values
    assert torch.equal(kth_smallest(vectors, vectors.names, rank), ordered[:, rank - 1])
    assert torch.equal(largest(vectors, vectors.names), ordered[:, -1].double())


def test_reads_large_well_behaved_data_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    vectors = TaskVectors({"a": torch.zeros(2**24)}, {"e": {"a": normal(2**24, generator)}})
    passes = []
    narrow = selection._Search._narrow
    monkeypatch.setattr(selection._Search, "_narrow", lambda self: (passes.append(1), narrow(self)))
    kth_smallest_magnitude(vectors, ("a",), int(0.8 * 2**24))
    assert len(passes) == 1
