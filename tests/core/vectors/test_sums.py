"""Sums over a tensor do not depend on how it is read, and see every entry once."""

import pytest
import torch

from lightning_merge.core.vectors import sums
from lightning_merge.core.vectors.sums import sum_over_tensor
from lightning_merge.core.vectors.task_vectors import TaskVectors


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (5, 4), (2, 3, 3)])
@pytest.mark.parametrize("whole", [True, False])
def test_every_entry_counts_once(shape, whole, monkeypatch):
    monkeypatch.setattr(sums, "_BLOCK", 5)
    expert = torch.rand(shape)
    vectors = TaskVectors({"w": torch.zeros(shape)}, {"a": {"w": expert}})
    got = sum_over_tensor(
        vectors.whole() if whole else vectors, "w", lambda _, tile: tile.double().sum(), whole=whole
    )
    torch.testing.assert_close(got, expert.double().sum())


def test_the_size_of_tiles_changes_no_bit(monkeypatch):
    vectors = TaskVectors({"w": torch.zeros(300, 300)}, {"a": {"w": torch.randn(300, 300)}})

    def total():
        return sum_over_tensor(vectors, "w", lambda _, tile: tile.sum(), whole=False)

    first = total()
    monkeypatch.setattr("lightning_merge.core.vectors.tiles.TILE", 1)
    assert torch.equal(total(), first)
