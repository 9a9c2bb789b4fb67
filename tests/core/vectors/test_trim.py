"""Trimming: counts, ties, thresholds against sorting, and the published row trim."""

import math

import pytest
import torch
from safetensors.torch import load_file

from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.trim import (
    global_trim,
    keep_largest,
    magnitude_thresholds,
    row_trim,
    tensor_trim,
    trim_rows,
)


def make_vectors(*shapes, tasks=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = {f"t{i}": torch.zeros(shape) for i, shape in enumerate(shapes)}
    draw = lambda t: torch.randn(t.shape, generator=generator)  # noqa: E731
    return TaskVectors(base, {f"e{k}": {n: draw(t) for n, t in base.items()} for k in range(tasks)})


def keep_by_loop(row, count):
    kept = sorted(range(len(row)), key=lambda i: -abs(row[i]))[:count]  # stable: first ones win
    return [value if i in kept else 0.0 for i, value in enumerate(row)]


@pytest.mark.parametrize("values", ["distinct", "tied", "zero"])
@pytest.mark.parametrize("counts", [[0, 1, 5, 11, 12], [4] * 5, [0] * 5, [12] * 5])
def test_keep_largest_keeps_exactly_the_counts(values, counts):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(2, 5, 12, generator=generator)
    rows = {"distinct": rows, "tied": rows.round(), "zero": 0 * rows}[values]
    kept = keep_largest(rows, torch.tensor(counts))
    for k in range(2):
        for j, count in enumerate(counts):
            assert kept[k, j].tolist() == keep_by_loop(rows[k, j].tolist(), count)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (7,), (4, 5), (3, 2, 2, 2)])
@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 1.0])
def test_tensor_trim_of_any_shape(shape, density):
    vectors = make_vectors(shape)
    trimmed = vectors.map(tensor_trim(vectors, density))["t0"]
    assert trimmed.shape == (3, *shape)
    kept = (trimmed != 0).sum(tuple(range(1, trimmed.dim()))) if shape else trimmed != 0
    assert kept.tolist() == [int(math.prod(shape) * density)] * 3


def test_trim_rows_takes_one_vector_or_a_stack():
    stack = make_vectors((6, 10))["t0"]
    ratios = torch.linspace(0, 1, 6)
    rows = trim_rows(stack, ratios)
    assert (rows != 0).sum(-1).tolist() == [[0, 2, 4, 6, 8, 10]] * 3
    assert torch.equal(torch.stack([trim_rows(vector, ratios) for vector in stack]), rows)
    per_expert = trim_rows(stack, torch.stack([ratios, ratios.flip(0), 0 * ratios]))
    assert (per_expert != 0).sum(-1)[1:].tolist() == [[10, 8, 6, 4, 2, 0], [0] * 6]


@pytest.mark.shared
def test_trim_rows_matches_the_published_code(shared):
    fixtures = shared / "fixtures"
    ranks = load_file(fixtures / "expected" / "mties_rank_scale.safetensors")
    want = load_file(fixtures / "expected" / "mties_rowtrim_k0.2_e0.1.safetensors")
    name = "model.visual.transformer.resblocks.1.mlp.c_fc.weight"
    base = load_file(fixtures / "zoo" / "pretrained.safetensors")[name]
    for k, path in enumerate(sorted((fixtures / "zoo").glob("expert_*"))):
        trimmed = trim_rows(load_file(path)[name] - base, ranks["keep_k0.2_e0.1"])
        torch.testing.assert_close(trimmed, want[str(k)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.2, 0.77, 1.0])
def test_global_threshold_is_the_one_that_sorting_finds(density):
    vectors = make_vectors((4, 5), (7,), (), (0, 2), (2, 3, 2))
    thresholds = magnitude_thresholds(vectors, density)
    total = 20 + 7 + 1 + 12
    for k in range(3):
        flat = torch.cat([vectors[n][k].flatten() for n in vectors.names]).abs().sort().values
        rank = total - int(total * density)
        want = torch.inf if density == 0 else flat[rank - 1].item() if rank else 0.0
        assert thresholds[k].item() == want
    trim = global_trim(vectors, density)
    for name in vectors.names:
        for k in range(3):
            vector = vectors[name][k]
            want = torch.where(vector.abs() >= thresholds[k], vector, 0)
            assert torch.equal(vectors.map(trim)[name][k], want)


def test_trimming_is_scale_equivariant_and_idempotent():
    vectors = make_vectors((6, 10))
    trimmed = vectors.map(tensor_trim(vectors, 0.3))
    larger = vectors.map(lambda span, tile: 4 * tile)
    assert torch.equal(larger.map(tensor_trim(larger, 0.3))["t0"], 4 * trimmed["t0"])
    assert torch.equal(trimmed.map(tensor_trim(trimmed, 0.3))["t0"], trimmed["t0"])


@pytest.mark.parametrize("entries", [1, 100, 10**6])
@pytest.mark.parametrize("values", ["distinct", "tied", "zero"])
def test_tensor_trim_keeps_what_sorting_keeps_whatever_the_tiles(values, entries, monkeypatch):
    monkeypatch.setattr("lightning_merge.core.vectors.tiles.TILE", entries)
    drawn = make_vectors((50, 4), seed=5)
    change = {"distinct": torch.clone, "tied": torch.round, "zero": torch.zeros_like}[values]
    vectors = drawn.map(lambda span, tile: change(tile))
    want = keep_largest(vectors["t0"].flatten(1), torch.tensor(60)).view(3, 50, 4)
    trimmed = vectors.map(tensor_trim(vectors, 0.3))
    tiles = [trimmed.read(span) for span in trimmed.spans("t0")]
    assert torch.equal(torch.cat(tiles, 1).view(3, 50, 4), want)


@pytest.mark.parametrize("entries", [1, 30, 10**6])
def test_row_trim_is_that_of_whole_matrices(entries, monkeypatch):
    monkeypatch.setattr("lightning_merge.core.vectors.tiles.TILE", entries)
    vectors = make_vectors((6, 10), (8,))
    ratios = {"t0": torch.linspace(0, 1, 6)}
    trimmed = vectors.map(row_trim(vectors, ratios, lambda span, tile: 0 * tile))
    tiles = [trimmed.read(span) for span in trimmed.spans("t0")]
    want = trim_rows(vectors["t0"], ratios["t0"])
    assert torch.equal(torch.cat(tiles, 1).view(3, 6, 10), want)
    assert not trimmed["t1"].any()
