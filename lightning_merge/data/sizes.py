"""How many images and batches a run has, as the division tells without decoding any."""

from math import ceil

from lightning_merge.core.ranks import Ranks
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.data.division import TRANSDUCTIVE
from lightning_merge.data.fit_loaders import sizes_of_steps

PARTS = {"val": "validation", "test": "test", "predict": "test"}
"""What Lightning calls a pass over a part of the data -> the part."""


def count_images(data: MergeDataModule, stage: str) -> dict[str, int]:
    """Return the number of images of every task.

    Args:
        data: Loaded.
        stage: "train" (what `fit` draws from), "val", "test" or "predict".
    """
    if stage == "train":
        part, tasks = TRANSDUCTIVE if data.transductive else data.fit_on, data.seen
    else:
        part, tasks = PARTS[stage], data.tasks
    return {task: len(data.division.part(task, part)[1]) for task in tasks}


def count_batches(data: MergeDataModule, stage: str, processes: int = 1) -> dict[str, int]:
    """Return the number of batches that a process has of every task, in an epoch or in a pass.

    Args:
        data: Loaded.
        stage: See `count_images`.
        processes: Of the run.
    """
    images = count_images(data, stage)
    if stage != "train":
        return {t: ceil(ceil(n / data.eval_batch_size) / processes) for t, n in images.items()}
    proportional = data.sampling == "proportional"
    sizes = sizes_of_steps(images, data.batch_size, proportional, Ranks(0, processes))
    return {t: n // max(1, sizes[t].size) // sizes[t].ranks.size for t, n in images.items()}
