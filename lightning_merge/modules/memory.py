"""Check before learning that coefficients can be learned in the memory of the machine."""

import os

import torch
from lightning.pytorch import Trainer

from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.task_vectors import TaskVectors


def check_memory(vectors: TaskVectors, trainer: Trainer, *, offload: bool = False) -> None:
    """Check that the weights of a learning step fit into memory.

    These are the stacked task vectors, which offloading leaves on the host, the base, a merged
    network, and a gradient of one tensor (counted as half a network), in float32. Activations are
    not counted. On the CPU, the weights of all processes must fit.

    Args:
        vectors: Task vectors of the experts.
        trainer: Trainer that will run the learning.
        offload: Whether task vectors stay on the host.

    Raises:
        InputError: The weights do not fit.

    Examples:
        >>> experts = {"cars": {"w": torch.ones(2)}, "pets": {"w": -torch.ones(2)}}
        >>> vectors = TaskVectors({"w": torch.zeros(2)}, experts)
        >>> check_memory(vectors, Trainer(accelerator="cpu", logger=False))  # 36 bytes are enough
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
                f"{what} {needed / 1e9:.3g} GB on every device, but {device} has "
                f"{available / 1e9:.3g} GB for it; {instead}"
            )
    needed = stacks * offload if device.type == "cuda" else stacks + networks
    if host is not None and needed * processes > host:
        raise InputError(
            f"{what} {needed / 1e9:.3g} GB in every process, but the host has "
            f"{host / processes / 1e9:.3g} GB for it; {instead}"
        )


def _host_memory() -> int | None:
    """Return the bytes of the host's memory; None if the system does not tell (Windows)."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
