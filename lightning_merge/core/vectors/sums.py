"""Sums over all entries of a tensor that do not depend on how it is read."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.tiles import Span

_BLOCK = 2**15  # entries of each expert that are read at a time


def sum_over_tensor(
    vectors: TaskVectors, name: str, function: Callable[[Span, Tensor], Tensor], *, whole: bool
) -> Tensor:
    """Return the sum in float64 of a function of a tensor's task vectors, reading it once.

    The spans are whole rows of the last dimension, of a fixed size and in order, so that the
    result depends neither on the size of tiles nor on what else is in memory.

    Args:
        vectors: Task vectors.
        name: The tensor.
        function: From a span and its task vectors [K, n], which it may change, to a summand.
        whole: Pass the tensor to the function in one piece.

    Returns:
        The sum of what the function returns; a scalar zero for an empty tensor.

    Examples:
        >>> vectors = TaskVectors({"w": torch.zeros(3)}, {"mnist": {"w": torch.ones(3)}})
        >>> sum_over_tensor(vectors, "w", lambda span, tile: tile.square().sum(1), whole=False)
        tensor([3.], dtype=torch.float64)
    """
    total = torch.zeros((), dtype=torch.float64)
    for span in vectors.spans(name) if whole else _blocks(vectors, name):
        total = total + function(span, vectors.read(span)).double().cpu()
    return total


def _blocks(vectors: TaskVectors, name: str) -> Iterator[Span]:
    shape, size = vectors.base.shape(name), vectors.numel(name)
    row = max(1, shape[-1]) if len(shape) > 1 else 1
    step = max(1, _BLOCK // row) * row
    for start in range(0, size, step):
        yield Span(name, start, min(start + step, size))
