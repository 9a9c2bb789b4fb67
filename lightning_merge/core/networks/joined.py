"""Inputs of several batches or tasks as one tensor."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from lightning_merge.core.errors import InputError


def joined(batches: Iterable[Tensor]) -> Tensor:
    """Concatenate inputs [n, ...] whose rows have one shape.

    Texts of equal width may also come in pairs, [n, 2, width]; beside single ones [n, width] they
    become 2 n rows, which are what the network encodes in either case. Prompts with different
    numbers of answers, [n, 1 + C, width], get rows of padding.

    Args:
        batches: The inputs.

    Raises:
        InputError: Their rows differ in shape otherwise.

    Examples:
        >>> pairs, single = torch.zeros(2, 2, 5).long(), torch.zeros(3, 5).long()
        >>> joined([pairs, pairs]).shape, joined([pairs, single]).shape
        (torch.Size([4, 2, 5]), torch.Size([7, 5]))
    """
    given = [*batches]
    texts = not any(batch.is_floating_point() for batch in given)
    if texts and all(batch.ndim == 3 for batch in given):
        most = max(batch.shape[1] for batch in given)
        given = [functional.pad(batch, (0, 0, 0, most - batch.shape[1])) for batch in given]
    elif texts and len({batch.shape[1:] for batch in given}) > 1:
        given = [batch.flatten(0, -2) for batch in given]
    if len(shapes := {tuple(batch.shape[1:]) for batch in given}) > 1:
        raise InputError(
            f"inputs of different shapes {sorted(shapes)} cannot be one batch; give all tasks "
            "inputs of the same shape"
        )
    return torch.cat(given)
