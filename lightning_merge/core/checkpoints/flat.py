"""Tensors as flat runs of elements and of bytes."""

import torch
from torch import Tensor

from lightning_merge.core.errors import InputError

BLOCK = 1 << 18  # elements to process at a time when values are converted


def flat_bytes(tensor: Tensor) -> memoryview:
    r"""Return the memory of a contiguous CPU tensor; writing to it changes the tensor.

    Args:
        tensor: Of any shape and dtype.

    Examples:
        >>> flat_bytes(torch.tensor([1, 2], dtype=torch.int16)).tobytes()
        b'\x01\x00\x02\x00'
    """
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))  # one element may have any stride
    return flat.view(torch.uint8).numpy().data


def flat_part(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Return elements start..stop of the flattened tensor, [stop - start].

    The result is a view if the tensor is contiguous, otherwise a copy of the rows around them.

    Args:
        tensor: Of any shape and strides.
        start: First element.
        stop: End of the elements.

    Examples:
        >>> flat_part(torch.arange(6).reshape(2, 3).T, 1, 4)
        tensor([3, 1, 4])
    """
    while not tensor.is_contiguous():
        row = tensor[0].numel()
        first, last = start // row, -(-stop // row)
        start, stop = start - first * row, stop - first * row
        one = last - first == 1
        tensor = tensor[first] if one else tensor[first:last].contiguous()
    return tensor.view(-1)[start:stop]


def check_fits(name: str, values: Tensor, stored: Tensor) -> None:
    """Check that no finite value became infinite when it was stored in a narrower type.

    Args:
        name: The tensor's name, for the message.
        values: [n], before.
        stored: [n], after.

    Raises:
        InputError: A value overflowed.

    Examples:
        >>> values = torch.tensor([1.0, 1e5])
        >>> check_fits("fc.weight", values, values.to(torch.float16))
        Traceback (most recent call last):
        lightning_merge.core.errors.InputError: fc.weight: a value of 1e+05 is too large...
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
            f"{name}: a value of {most:.3g} is too large for {kind}, whose maximum is "
            f"{torch.finfo(stored.dtype).max:.3g}: store a wider type, such as "
            f"{'float32' if most < 3e38 else 'float64'}, or choose a smaller scale"
        )
