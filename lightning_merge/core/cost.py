"""The cost of a piece of work: time, memory, and what its result needs at inference."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_merge.core.allocator import give_back


@dataclass
class Cost:
    """The cost of making a network, or of any other work, and of using the result.

    Attributes:
        seconds: Wall-clock time of the work.
        peak_memory: Bytes by which memory use rose at its peak, on the device or, if that is the
            CPU, on the host; None if the system does not report it.
        extra_parameters: Parameters stored in addition to those of one network.
        inference_cost: Forward passes of the base network per image.

    Examples:
        >>> Cost(seconds=3.2, extra_parameters=100).inference_cost
        1.0
    """

    seconds: float = 0.0
    peak_memory: int | None = None
    extra_parameters: int = 0
    inference_cost: float = 1.0


_open: list[Cost] = []


def charge(earlier: Cost) -> None:
    """Count earlier work, which several results share, in all blocks that are being measured.

    Examples:
        >>> with measured(torch.device("cpu")) as cost:
        ...     charge(Cost(seconds=100.0))
        >>> 100 < cost.seconds < 160
        True
    """
    for cost in _open:
        cost.seconds += earlier.seconds
        if earlier.peak_memory is not None:
            cost.peak_memory = max(cost.peak_memory or 0, earlier.peak_memory)


@contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Measure the time and memory of a block, including the work it queues on the device.

    Args:
        device: Where the block computes.

    Yields:
        A cost that is filled in when the block ends.

    Examples:
        >>> with measured(torch.device("cpu")) as cost:
        ...     _ = torch.ones(1000).sum()
        >>> 0 < cost.seconds < 60
        True
    """
    cost, before = Cost(), _restart(device)
    started = _now(device)
    _open.append(cost)
    try:
        yield cost
    finally:
        _open.pop()
    cost.seconds += _now(device) - started
    after = _peak(device)
    if before is not None and after is not None:
        cost.peak_memory = max(cost.peak_memory or 0, after - before)


def _now(device: torch.device) -> float:
    """Return the time in seconds once the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _restart(device: torch.device) -> int | None:
    """Reset the peak and return the bytes in use; None if the system does not allow it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident set, proc(5)
    except OSError:  # not Linux, or not permitted
        return None
    return _peak(device)


def _peak(device: torch.device) -> int | None:
    """Return the peak number of bytes in use since the restart; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    peaks = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return 1024 * int(peaks[0]) if peaks else None
