"""Whether learning coefficients fits into memory, asked before it begins."""

import os

import torch
from lightning.pytorch import Trainer

from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.task_vectors import TaskVectors


def check_memory(vectors: TaskVectors, trainer: Trainer, *, offload: bool = False) -> None:
    """Check that a step's weights fit into a device's memory, or all processes' into the host's.

    They are the stacked task vectors, which offloading leaves on the host, the base, a merged
    network, and a gradient of one tensor (counted as half a network), in float32; activations
    come on top.

    Raises:
        InputError: They do not.
    """
    entries = sum(map(vectors.numel, vectors.names))
    stacks, networks = 4 * len(vectors) * entries, 10 * entries
    device, host = trainer.strategy.root_device, _host_memory()
    processes = trainer.num_devices
    what = f"learning coefficients of {len(vectors)} experts of {entries} entries takes"
    instead = "merge them in closed form (see docs/methods.md), or take fewer or smaller experts"
    if device.type == "cuda":
        needed = networks + (0 if offload else stacks)
        available = torch.cuda.get_device_properties(device).total_memory
        if needed > available:
            instead = (
                "give --model.offload true, which keeps task vectors on the host, or "
                * (not offload)
                + instead
            )
            raise InputError(
                f"{what} {needed / 1e9:.3g} GB on every device, and {device} has "
                f"{available / 1e9:.3g} GB for it; {instead}"
            )
    needed = stacks * offload if device.type == "cuda" else stacks + networks
    if host is not None and needed * processes > host:
        raise InputError(
            f"{what} {needed / 1e9:.3g} GB in every process, and the host has "
            f"{host / processes / 1e9:.3g} GB for it; {instead}"
        )


def _host_memory() -> int | None:
    """Return the bytes of the host's memory; None where the system does not say (Windows)."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
