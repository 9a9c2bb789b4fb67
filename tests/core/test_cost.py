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
    assert len(held)
    assert cost.seconds >= 0.01
    if cost.peak_memory is None:
        pytest.skip("the system does not tell a process's peak")
    assert cost.peak_memory < 8 * MIB


class NoGlibc:
    """A C library without malloc_trim."""


def no_loading(name):
    raise OSError("Dynamic loading not supported")


def no_name(name):
    raise TypeError("a name is wanted")


@pytest.mark.parametrize("load", [lambda name: NoGlibc(), no_loading, no_name])
def test_other_c_libraries_are_no_error(load, monkeypatch):
    """macOS, musl without dynamic loading, Windows."""
    monkeypatch.setattr("ctypes.CDLL", load)
    with measured(CPU) as cost:
        fill(1)
    assert cost.seconds > 0


def test_a_status_without_the_peak_is_no_error(monkeypatch):
    monkeypatch.setattr("pathlib.Path.read_text", lambda self: "Name: python\nVmSize: 1 kB\n")
    with measured(CPU) as cost:
        fill(1)
    assert cost.peak_memory is None
    assert cost.seconds > 0


def test_a_system_that_does_not_tell_is_no_error(monkeypatch):
    def refuse(self, text):
        raise PermissionError(self)

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    with measured(CPU) as cost:
        fill(1)
    assert cost.peak_memory is None
    assert cost.seconds > 0


class Device:
    """A stand-in for a CUDA device, which does what it is asked for later."""

    def __init__(self, monkeypatch):
        self.waiting = 0.0
        monkeypatch.setattr("torch.cuda.synchronize", self.synchronize)
        for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
            monkeypatch.setattr(f"torch.cuda.{name}", lambda device: 0)

    def synchronize(self, device):
        time.sleep(self.waiting)
        self.waiting = 0.0


def test_a_device_is_waited_for_at_both_ends(monkeypatch):
    device, cuda = Device(monkeypatch), torch.device("cuda", 0)
    device.waiting = 0.3
    with measured(cuda) as before:
        pass
    assert before.seconds < 0.2
    with measured(cuda) as within:
        device.waiting = 0.3
    assert within.seconds >= 0.3
    assert within.peak_memory == 0


@pytest.mark.gpu
def test_memory_of_a_device_is_its_own():
    device = torch.device("cuda")
    with measured(device) as cost:
        torch.ones(32 * MIB // 4, device=device)
    assert cost.peak_memory == 32 * MIB


@pytest.mark.gpu
def test_seconds_of_a_device_are_those_of_its_work():
    """What a block has asked for counts, what was asked for before does not."""
    device, busy = torch.device("cuda"), torch.ones(4096, 4096, device="cuda")

    def work():
        for _ in range(100):
            busy.mm(busy)  # asked for in no time

    with measured(device):
        work()  # the library is loaded
    with measured(device) as own:
        work()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    taken = time.perf_counter() - started
    work()
    with measured(device) as nothing:
        pass
    assert own.seconds > 0.5 * taken
    assert nothing.seconds < 0.2 * taken
