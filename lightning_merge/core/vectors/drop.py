"""Dropping entries of task vectors at random."""

from torch import Tensor

from lightning_merge.core.seeding import uniform_numbers
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.tiles import Span


def drop_at_random(
    span: Span, tile: Tensor, vectors: TaskVectors, probability: float | Tensor, seed: int
) -> Tensor:
    """Zero entries of a tile in place, each with some probability.

    The random numbers depend on the seed, the task, the tensor's name (without the prefix of all
    names) and the entry's position alone, not on the order of reading. Tied tensors share theirs.

    Args:
        span: Where the tile lies.
        tile: [K, n].
        vectors: The task vectors that the tile is of.
        probability: Of dropping an entry: one for all, or of each, [n] on the CPU.
        seed: Of the random numbers.
    """
    key = vectors.stored.key(span.name)
    for task, row in zip(vectors.tasks, tile, strict=True):
        numbers = uniform_numbers(span.start, span.stop, seed, task, key)
        row.masked_fill_((numbers < probability).to(row.device), 0.0)
    return tile
