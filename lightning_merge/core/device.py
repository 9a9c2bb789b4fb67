"""The device that a command runs a network on."""

import torch

from lightning_merge.core.errors import InputError


def run_device(name: str | None = None) -> torch.device:
    """Return a device on which tensors can be created.

    Args:
        name: As in torch, such as "cpu" or "cuda:1"; by default a CUDA GPU if there is one, else
            the CPU.

    Raises:
        InputError: The device is unknown or unavailable.

    Examples:
        >>> run_device("cpu")
        device(type='cpu')
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1).to(name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as fault:
        raise InputError(
            f"device={name!r}: {str(fault).splitlines()[0]}; use cpu, or cuda if there is a GPU"
        ) from fault
    return torch.device(name)
