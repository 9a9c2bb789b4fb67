"""Dropping entries of task vectors at random."""

from collections.abc import Sequence

from torch import Tensor

from lightning_merge.core.seeding import uniform_numbers
from lightning_merge.core.task_vectors import Span


def drop_at_random(
    span: Span, tile: Tensor, tasks: Sequence[str], probability: float | Tensor, seed: int
) -> Tensor:
    """Zero entries of a tile in place, each with some probability.

    The random numbers depend on the seed, the task, the tensor's name and the entry's position
    alone, not on the order of reading.

    Args:
        span: Where the tile lies.
        tile: [K, n].
        tasks: Names of the K experts.
        probability: Of dropping an entry: one for all, or of each, [n] on the CPU.
        seed: Of the random numbers.
    """
    for task, row in zip(tasks, tile, strict=True):
        numbers = uniform_numbers(span.start, span.stop, seed, task, span.name)
        row.masked_fill_((numbers < probability).to(row.device), 0.0)
    return tile
