"""Losses shared by methods and modules."""

from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the predicted distributions in nats, [n], from logits [n, C].

    Examples:
        >>> import torch
        >>> entropy(torch.zeros(1, 2))  # ln 2
        tensor([0.6931])
    """
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)
