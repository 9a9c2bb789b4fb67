"""What a block of work took, against work of a known size."""

import time

import pytest
import torch

from lightning_merge.core.cost import measured

CPU = torch.device("cpu")
MIB = 2**20


def fill(mebibytes):
    torch.ones(mebibytes * MIB // 4)


@pytest.mark.parametrize("mebibytes", [32, 64])
def test_memory_that_was_given_back_counts(mebibytes):
    with measured(CPU) as cost:
        fill(mebibytes)
    if cost.peak_memory is None:
        pytest.skip("the system does not tell a process's peak")
    assert mebibytes - 4 <= cost.peak_memory / MIB <= mebibytes + 8


def test_memory_of_before_does_not_count():
    held = torch.ones(32 * MIB // 4)
    fill(64)
    with measured(CPU) as cost:
        time.sleep(0.01)
    assert cost.peak_memory is None or cost.peak_memory < 8 * MIB
    assert len(held)
    assert cost.seconds >= 0.01


def test_a_system_that_does_not_tell_is_no_error(monkeypatch):
    def refuse(self, text):
        raise PermissionError(self)

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    with measured(CPU) as cost:
        fill(1)
    assert cost.peak_memory is None
    assert cost.seconds > 0


@pytest.mark.gpu
def test_memory_of_a_device_is_its_own():
    device = torch.device("cuda")
    with measured(device) as cost:
        torch.ones(32 * MIB // 4, device=device)
    assert cost.peak_memory == 32 * MIB
