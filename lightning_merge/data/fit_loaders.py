"""Loaders of the images that are fitted on: one per task, shuffled, in step with each other."""

from collections.abc import Mapping
from typing import NamedTuple

from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from lightning_merge.core.ranks import ALONE, Ranks
from lightning_merge.data.dataset import SeededOrder, TaskImages, Unlabelled, loader
from lightning_merge.data.resume import START, Position


class FitImages(NamedTuple):
    """What one task gives to fit.

    Attributes:
        images: A part of the task.
        positions: int64 [n], those of its images that are fitted on.
    """

    images: TaskImages | Unlabelled
    positions: Tensor


def fit_loaders(
    tasks: Mapping[str, FitImages],
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
        tasks: Name -> its images.
        batch_size: Images per task, step and process; of all tasks together, about, where
            proportional.
        proportional: Draw more images of larger tasks, not as many of each.
        seed: Of the order of the images.
        num_workers: See `loader`.
        ranks: The processes that divide the images of an epoch; those of a task with fewer
            images than processes go to all.
        position: Where to start.
    """
    counts = {task: len(own.positions) for task, own in tasks.items()}
    sizes = sizes_of_steps(counts, batch_size, proportional, ranks)
    loaders = {
        task: loader(
            images,
            sizes[task].size,
            num_workers=num_workers,
            order=SeededOrder(positions, seed, task),
            drop_last=True,
            ranks=sizes[task].ranks,
            position=position,
        )
        for task, (images, positions) in tasks.items()
    }
    return CombinedLoader(loaders, "max_size_cycle")


class Size(NamedTuple):
    """What a process takes of a task for a step.

    Attributes:
        size: Images.
        ranks: The processes that divide the task's images.
    """

    size: int
    ranks: Ranks


def sizes_of_steps(
    counts: Mapping[str, int], batch_size: int, proportional: bool, ranks: Ranks
) -> dict[str, Size]:
    """Return what a process takes of every task for a step; arguments as in `fit_loaders`.

    Args:
        counts: Images of each task.
        batch_size: Images per task, or of all tasks together, about.
        proportional: Take more of larger tasks.
        ranks: The processes.
    """
    total, sizes = sum(counts.values()), {}
    for task, count in counts.items():
        wanted = max(1, round(batch_size * count / total)) if proportional else batch_size
        size = min(wanted, count // ranks.size)
        sizes[task] = Size(size, ranks) if size else Size(count, ALONE)
    return sizes
