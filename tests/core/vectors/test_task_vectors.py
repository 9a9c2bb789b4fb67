"""The lazy stack of task vectors."""

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.task_vectors import TaskVectors, flatten_tasks
from lightning_merge.core.vectors.tiles import Span


@pytest.fixture
def base():
    return {
        "scalar": torch.tensor(2.0),
        "bn.running_mean": torch.ones(2),
        "count": torch.tensor(3),
        "half": torch.ones(2, 3, dtype=torch.float16),
        "double": torch.ones(2, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
    }


@pytest.fixture
def vectors(base):
    return TaskVectors(base, {"a": {n: t + 1 for n, t in base.items()}, "b": base})


def test_names_tasks_and_stacks(vectors):
    assert vectors.tasks == ("a", "b")
    assert len(vectors) == 2
    assert vectors.names == ("scalar", "half", "double", "empty")
    assert vectors["scalar"].tolist() == [1.0, 0.0]
    assert vectors["half"].dtype == torch.float32
    assert vectors["half"].tolist() == [[[1.0] * 3] * 2, [[0.0] * 3] * 2]
    assert vectors["double"].dtype == torch.float64
    assert vectors["empty"].shape == (2, 0, 4)
    assert vectors.stored.stack("bn.running_mean").tolist() == [[2.0, 2.0], [1.0, 1.0]]
    assert vectors.weights("scalar").tolist() == [3.0, 2.0]


def test_maps_are_lazy_and_leave_the_original_alone(vectors):
    read = []

    def double(span, tile):
        read.append(span.name)
        return 2 * tile

    mapped = vectors.map(double).map(lambda span, tile: tile + 1)
    assert not read
    assert mapped["scalar"].tolist() == [3.0, 1.0]
    assert mapped.weights("scalar").tolist() == [5.0, 3.0]
    assert vectors["scalar"].tolist() == [1.0, 0.0]
    assert read == ["scalar", "scalar"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_broken_values_name_who_and_what(value, base):
    broken = base | {"half": torch.full((2, 3), value)}
    with pytest.raises(InputError, match="experts: half of b, c has"):
        TaskVectors(base, {"a": base, "b": broken, "c": broken})["half"]
    with pytest.raises(InputError, match="base: half has"):
        TaskVectors(broken, {"a": base})["half"]


def test_large_finite_values_are_no_error(base):
    large = base | {"double": torch.full((2,), 1e308, dtype=torch.float64)}
    assert TaskVectors(base, {"a": large})["double"].isfinite().all()


@pytest.mark.parametrize("entries", [1, 7, 8, 64, 10**6])
def test_tiles_cover_every_tensor_by_whole_rows(entries, vectors, monkeypatch):
    monkeypatch.setattr("lightning_merge.core.vectors.tiles.TILE", entries)
    for name in vectors.names:
        spans, whole = [*vectors.spans(name)], flatten_tasks(vectors[name])
        assert [s.start for s in spans[1:]] == [s.stop for s in spans[:-1]]
        row = 3 if name == "half" else 1
        for span in spans:
            assert span.start % row == 0
            assert span.stop - span.start <= max(row, entries // 2)
            assert torch.equal(vectors.read(span), whole[:, span.start : span.stop])
        assert sum(s.stop - s.start for s in spans) == vectors.numel(name)
        stored = vectors.base[name].flatten()
        for span, base, tile in vectors.tiles(name):
            assert torch.equal(tile, vectors.read(span))
            assert torch.equal(base, stored[span.start : span.stop].to(base.dtype))


def test_zeroed_tensors_are_not_read(base):
    broken = base | {"half": torch.full((2, 3), float("nan")), "double": base["double"] + 1}
    view = TaskVectors(base, {"a": broken}).zeroed(["half"])
    assert not view["half"].any()
    assert view.is_zero("half")
    assert not view.is_zero("double")
    with pytest.raises(InputError, match="half"):
        TaskVectors(base, {"a": broken}).read(Span("half", 0, 2))


@pytest.mark.parametrize(
    ("shape", "step"),
    [
        ((6, 2, 2, 2), 24),  # three filters
        ((6, 5, 5, 5), 125),  # a filter that is larger than a tile
        ((6, 20, 4), 28),  # fused experts
        ((1, 20, 2, 3), 30),  # positions
        ((2, 40), 40),
    ],
)
def test_tiles_are_rows_of_the_matrix_where_those_are_small(shape, step, monkeypatch):
    monkeypatch.setattr("lightning_merge.core.vectors.tiles.TILE", 60)
    base = {"w": torch.zeros(shape)}
    vectors = TaskVectors(base, {"a": base, "b": base})
    first, *others = vectors.spans("w")
    assert (first.start, first.stop) == (0, step)
    assert sum(s.stop - s.start for s in (first, *others)) == base["w"].numel()
