"""Loaders of the images that are fitted on: one per task, shuffled, in step with each other."""

from collections.abc import Mapping
from typing import NamedTuple

from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from lightning_merge.core.ranks import ALONE, Ranks
from lightning_merge.data.dataset import SeededOrder, TaskImages, Unlabelled, loader
from lightning_merge.data.resume import START, Position


class Drawn(NamedTuple):
    """What one task gives to fit.

    Attributes:
        images: a part of the task.
        positions: int64 [n], those of its images that are drawn.
    """

    images: TaskImages | Unlabelled
    positions: Tensor


def fit_loaders(
    tasks: Mapping[str, Drawn],
    batch_size: int,
    *,
    proportional: bool,
    seed: int,
    num_workers: int,
    ranks: Ranks,
    position: Position = START,
) -> CombinedLoader:
    """Return one loader per task; an epoch ends with the longest, the others start over.

    Args:
        tasks: name -> what is drawn.
        batch_size: images per task, step and process; of all tasks together, about, where
            proportional.
        proportional: draw more images of larger tasks, not as many of each.
        seed: of the order of the images.
        num_workers: see `loader`.
        ranks: the processes that divide the images of an epoch; those of a task with fewer
            images than processes go to all.
        position: where to start.
    """
    total = sum(len(drawn.positions) for drawn in tasks.values())
    loaders = {}
    for task, (images, positions) in tasks.items():
        size = batch_size
        if proportional:
            size = max(1, round(batch_size * len(positions) / total))
        sharing, size = ranks, min(size, len(positions) // ranks.size)
        if size == 0:
            sharing, size = ALONE, len(positions)
        loaders[task] = loader(
            images,
            size,
            num_workers=num_workers,
            order=SeededOrder(positions, seed, task),
            drop_last=True,
            ranks=sharing,
            position=position,
        )
    return CombinedLoader(loaders, "max_size_cycle")
