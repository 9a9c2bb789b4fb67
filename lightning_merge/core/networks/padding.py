"""Which tokens of a batch of texts are padding, for statistics of a network's inner inputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_TOKENS: ContextVar[tuple[Tensor, ...]] = ContextVar("tokens", default=())


@contextmanager
def padded(*tokens: Tensor) -> Iterator[None]:
    """Say which positions of a batch are tokens while a network runs on it.

    Networks of text do so around their layers; `unpadded` is for whoever looks at these.

    Args:
        tokens: Whether each position is a token, and not padding, bool [n, L]; several for a
            network that runs over two texts.

    Examples:
        >>> import torch
        >>> states = torch.tensor([[[1.0], [2.0]], [[3.0], [0.0]]])  # 2 texts, 2 positions, 1 value
        >>> with padded(torch.tensor([[True, True], [True, False]])):
        ...     unpadded(states).flatten().tolist()
        [1.0, 2.0, 3.0]
    """
    before = _TOKENS.set(tokens)
    try:
        yield
    finally:
        _TOKENS.reset(before)


def tokens_now() -> tuple[Tensor, ...]:
    """Return what `padded` says at the moment.

    Examples:
        >>> tokens_now()
        ()
    """
    return _TOKENS.get()


def unpadded(states: Tensor) -> Tensor:
    """Return the states of tokens [rows, dim], without those of padding.

    Args:
        states: States [n, L, dim] of a batch; others, and all states outside of `padded`, are
            returned unchanged.

    Examples:
        >>> import torch
        >>> unpadded(torch.ones(2, 3, 4)).shape  # nothing is known of padding
        torch.Size([2, 3, 4])
    """
    tokens = tokens_of(states)
    return states if tokens is None else states[tokens]


def tokens_of(states: Tensor) -> Tensor | None:
    """Return which positions of states [n, L, dim] are tokens, bool [n, L]; None if unknown.

    Examples:
        >>> import torch
        >>> tokens_of(torch.ones(2, 3, 4)) is None
        True
    """
    same = (tokens for tokens in _TOKENS.get() if states.shape[:-1] == tokens.shape)
    return next(same, None)
