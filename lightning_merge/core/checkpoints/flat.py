"""Tensors as runs of elements and of bytes."""

import torch
from torch import Tensor

from lightning_merge.core.errors import InputError

BLOCK = 1 << 18  # elements taken at a time where values have to be converted


def flat_bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor; writing to it writes to the tensor."""
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))  # one element has any stride
    return flat.view(torch.uint8).numpy().data


def flat_part(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Elements start..stop of the flattened tensor, [stop - start].

    A view where the tensor is contiguous; otherwise a copy of the rows that hold them.
    """
    while not tensor.is_contiguous():
        row = tensor[0].numel()
        first, last = start // row, -(-stop // row)
        start, stop = start - first * row, stop - first * row
        one = last - first == 1
        tensor = tensor[first] if one else tensor[first:last].contiguous()
    return tensor.view(-1)[start:stop]


def check_fits(name: str, values: Tensor, stored: Tensor) -> None:
    """Check that no finite value has become infinite where it was stored in a narrower type.

    Args:
        name: Of the tensor, for the message.
        values: [n] before.
        stored: [n] after.

    Raises:
        InputError: One has.
    """
    if stored.dtype == values.dtype or not (
        stored.is_floating_point() and values.is_floating_point()
    ):
        return
    if torch.finfo(stored.dtype).max >= torch.finfo(values.dtype).max or bool(
        stored.isfinite().all()
    ):
        return
    lost = values[~stored.isfinite() & values.isfinite()]
    if len(lost):
        most, kind = float(lost.abs().max()), str(stored.dtype).removeprefix("torch.")
        raise InputError(
            f"{name}: a value of {most:.3g} is too large for {kind}, which ends at "
            f"{torch.finfo(stored.dtype).max:.3g}: store a wider type, such as "
            f"{'float32' if most < 3e38 else 'float64'}, or choose a smaller scale"
        )
