"""What making something took, and what it takes to use it."""

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Cost:
    """What making a network took, or any other work, and what its result takes.

    Attributes:
        seconds: Wall-clock time of the work.
        peak_memory: Bytes of the device, or of the host where it is the CPU, that were in use at
            the most beyond those in use before; None where the system does not say.
        extra_parameters: Numbers stored beside those of one network.
        inference_cost: Passes of the base that an image takes.
    """

    seconds: float = 0.0
    peak_memory: int | None = None
    extra_parameters: int = 0
    inference_cost: float = 1.0


@contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Measure the block; its cost is known when it, and what it has the device do, has ended."""
    cost, before = Cost(), _restart(device)
    started = _now(device)
    yield cost
    cost.seconds = _now(device) - started
    after = _peak(device)
    if before is not None and after is not None:
        cost.peak_memory = max(0, after - before)


def _now(device: torch.device) -> float:
    """Return the time when the device has done all that it was asked for, in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _restart(device: torch.device) -> int | None:
    """Forget the peak so far and return the bytes in use; None where that cannot be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    _give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident set, proc(5)
    except OSError:  # no Linux, or not allowed
        return None
    return _peak(device)


def _give_back() -> None:
    """Give the system the memory that the C library keeps for later, which would hide its use."""
    with suppress(OSError, TypeError, AttributeError):  # of glibc alone
        ctypes.CDLL(None).malloc_trim(0)


def _peak(device: torch.device) -> int | None:
    """Return the bytes in use at the most since the restart; None where that is not told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return 1024 * int(found[0]) if found else None
