"""Losses that methods and modules share."""

from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the predicted distributions in nats, [n], from logits [n, C]."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)
