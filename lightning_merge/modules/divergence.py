"""Training that has diverged, found while it runs."""

from collections.abc import Iterable

import torch
from torch import Tensor

EVERY = 100
"""Steps between two looks at what is trained; an epoch's end is one, too."""


@torch.no_grad()
def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor with a NaN or an infinite entry, and which of the two.

    Costs a sum over each tensor, and waits for a GPU once.

    Args:
        tensors: On one device, by name.

    Returns:
        As in "blocks.0.weight (NaN)"; None where all are finite.
    """
    named = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]
    if not named or torch.stack([tensor.float().sum() for _, tensor in named]).isfinite().all():
        return None
    for name, tensor in named:  # a sum may be infinite where no entry is
        if not tensor.isfinite().all():
            return f"{name} ({'NaN' if tensor.isnan().any() else 'infinite'})"
    return None
