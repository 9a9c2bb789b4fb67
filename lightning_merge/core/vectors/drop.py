"""Dropping entries of task vectors at random."""

from torch import Tensor

from lightning_merge.core.seeding import uniform_numbers
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.tiles import Span


def drop_at_random(
    span: Span, tile: Tensor, vectors: TaskVectors, probability: float | Tensor, seed: int
) -> Tensor:
    """Zero entries of a tile in place, each with some probability.

    The random numbers depend only on the seed, the task, the tensor's name (without the prefix
    common to all names) and the entry's position, not on the order of reading. Tied tensors share
    theirs.

    Args:
        span: Position of the tile.
        tile: [K, n].
        vectors: The task vectors that the tile belongs to.
        probability: Probability of dropping an entry: one for all, or one per entry, [n] on the
            CPU.
        seed: Seed of the random numbers.

    Examples:
        >>> import torch
        >>> vectors = TaskVectors({"w": torch.zeros(1000)}, {"mnist": {"w": torch.ones(1000)}})
        >>> span = Span("w", 0, 1000)
        >>> kept = drop_at_random(span, vectors.read(span), vectors, probability=0.9, seed=0)
        >>> 50 < kept.sum() < 150
        tensor(True)
    """
    key = vectors.stored.key(span.name)
    for task, row in zip(vectors.tasks, tile, strict=True):
        numbers = uniform_numbers(span.start, span.stop, seed, task, key)
        row.masked_fill_((numbers < probability).to(row.device), 0.0)
    return tile
