"""Loaders of the images to fit on: one per task, shuffled, in step with each other."""

from collections.abc import Mapping
from typing import NamedTuple

from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from lightning_merge.core.ranks import ALONE, Ranks
from lightning_merge.data.dataset import TaskInputs, Unlabelled
from lightning_merge.data.order import SeededOrder, loader
from lightning_merge.data.resume import START, Position


class FitInputs(NamedTuple):
    """Examples of one task to fit on.

    Attributes:
        inputs: A part of the task.
        positions: Positions of the examples to fit on, int64 [n].

    Examples:
        >>> import numpy as np, torch
        >>> from lightning_merge.data.examples import array_examples
        >>> from lightning_merge.models.image_preprocess import ImagePreprocess
        >>> pets = array_examples(["cat", "dog"], [0, 1, 1], np.zeros((3, 8, 8), np.uint8))
        >>> preprocess = ImagePreprocess(size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> images = TaskInputs(pets, torch.arange(3), preprocess, cache=True)
        >>> FitInputs(images, images.labels.nonzero().flatten()).positions  # the dogs
        tensor([1, 2])
    """

    inputs: TaskInputs | Unlabelled
    positions: Tensor


def fit_loaders(
    tasks: Mapping[str, FitInputs],
    batch_size: int,
    *,
    proportional: bool,
    seed: int,
    num_workers: int,
    ranks: Ranks,
    position: Position = START,
) -> CombinedLoader:
    """Return one loader per task; an epoch ends with the longest, and the others start over.

    Args:
        tasks: Name -> its images.
        batch_size: Images per task, step and process; if proportional, about as many of all tasks
            together.
        proportional: Draw images in proportion to the tasks' sizes instead of equally many.
        seed: Seed of the order of the images.
        num_workers: See `loader`.
        ranks: Processes that divide the images of an epoch; all of them see the images of a task
            with fewer images than processes.
        position: Where to start.

    Examples:
        >>> import numpy as np, torch
        >>> from lightning_merge.data.examples import array_examples
        >>> from lightning_merge.models.image_preprocess import ImagePreprocess
        >>> pets = array_examples(["cat", "dog"], [0, 1, 1, 0], np.zeros((4, 8, 8), np.uint8))
        >>> preprocess = ImagePreprocess(size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> images = TaskInputs(pets, torch.arange(4), preprocess, cache=True)
        >>> one = FitInputs(images, torch.tensor([1]))
        >>> tasks = {"all": FitInputs(images, torch.arange(4)), "one": one}
        >>> loaders = fit_loaders(tasks, 2, proportional=False, seed=0, num_workers=0, ranks=ALONE)
        >>> [{task: len(part.index) for task, part in batch.items()} for batch, *_ in loaders]
        [{'all': 2, 'one': 1}, {'all': 2, 'one': 1}]
    """
    counts = {task: len(own.positions) for task, own in tasks.items()}
    sizes = sizes_of_steps(counts, batch_size, proportional, ranks)
    loaders = {
        task: loader(
            inputs,
            sizes[task].size,
            num_workers=num_workers,
            order=SeededOrder(
                positions, seed, task, inputs.sizes, sizes[task].size * sizes[task].ranks.size
            ),
            drop_last=True,
            ranks=sizes[task].ranks,
            position=position,
        )
        for task, (inputs, positions) in tasks.items()
    }
    return CombinedLoader(loaders, "max_size_cycle")


class Size(NamedTuple):
    """Images of a task that one process takes for a step.

    Attributes:
        size: Number of images.
        ranks: Processes that divide the task's images.

    Examples:
        >>> Size(3, ALONE).ranks.size
        1
    """

    size: int
    ranks: Ranks


def sizes_of_steps(
    counts: Mapping[str, int], batch_size: int, proportional: bool, ranks: Ranks
) -> dict[str, Size]:
    """Return how many images of every task a process takes for a step; see `fit_loaders`.

    Args:
        counts: Number of images of each task.
        batch_size: Images per task, or of all tasks together if proportional.
        proportional: Take more images of larger tasks.
        ranks: The processes.

    Examples:
        >>> sizes = sizes_of_steps({"large": 90, "small": 10}, 20, True, Ranks(0, 2))
        >>> {task: own.size for task, own in sizes.items()}
        {'large': 18, 'small': 2}
    """
    total, sizes = sum(counts.values()), {}
    for task, count in counts.items():
        wanted = max(1, round(batch_size * count / total)) if proportional else batch_size
        size = min(wanted, count // ranks.size)
        sizes[task] = Size(size, ranks) if size else Size(count, ALONE)
    return sizes
