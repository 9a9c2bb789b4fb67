"""Tensors as runs of elements and of bytes."""

import torch
from torch import Tensor

BLOCK = 1 << 18  # elements taken at a time where values have to be converted


def flat_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor; writing to it writes to the tensor."""
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
