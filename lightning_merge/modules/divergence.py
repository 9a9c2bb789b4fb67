"""Detection of training that has diverged, while it runs."""

from collections.abc import Iterable

import torch
from torch import Tensor

EVERY = 100
"""Steps between two checks; the end of an epoch is checked, too."""


@torch.no_grad()
def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor with a NaN or infinite entry, and which of the two.

    Costs one sum per tensor and synchronises with a GPU once.

    Args:
        tensors: Names and tensors, on one device.

    Returns:
        Text such as "blocks.0.weight (NaN)"; None if all entries are finite.

    Examples:
        >>> first_not_finite([("a", torch.ones(2)), ("b", torch.tensor([1.0, float("nan")]))])
        'b (NaN)'
    """
    named = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]
    if not named or torch.stack([tensor.float().sum() for _, tensor in named]).isfinite().all():
        return None
    for name, tensor in named:  # a sum may overflow although all entries are finite
        if not tensor.isfinite().all():
            return f"{name} ({'NaN' if tensor.isnan().any() else 'infinite'})"
    return None
