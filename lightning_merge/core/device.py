"""The device that a command runs a network on."""

import torch

from lightning_merge.core.errors import InputError


def run_device(name: str | None = None) -> torch.device:
    """Return a device that tensors can be made on.

    Args:
        name: As torch has it, such as "cpu" or "cuda:1"; without it a CUDA GPU, where there is one.

    Raises:
        InputError: It is unknown, or not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1).to(name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as fault:
        raise InputError(
            f"device={name!r}: {str(fault).splitlines()[0]}; give cpu, or cuda where there is a GPU"
        ) from fault
    return torch.device(name)
