"""Numbers of images and batches of a run, counted without decoding any image."""

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
        data: Data module that has been loaded.
        stage: "train" (what `fit` draws from), "val", "test" or "predict".

    Examples:
        >>> data = MergeDataModule(tasks=["drawn_hues"], source="drawn", validation_fraction=0.25)
        >>> data.load(test=False)
        >>> count_images(data, "val")
        {'drawn_hues': 440}
    """
    if stage == "train":
        part, tasks = TRANSDUCTIVE if data.transductive else data.fit_on, data.seen
    else:
        part = PARTS[stage]
        tasks = data.evaluated_on(part)
    return {task: len(data.division.part(task, part)[1]) for task in tasks}


def count_batches(data: MergeDataModule, stage: str, processes: int = 1) -> dict[str, int]:
    """Return the number of batches of every task that a process has in an epoch or a pass.

    Args:
        data: Data module that has been loaded.
        stage: See `count_images`.
        processes: Number of processes of the run.

    Examples:
        >>> data = MergeDataModule(tasks=["drawn_hues"], source="drawn", eval_batch_size=50)
        >>> data.load(test=False)
        >>> count_batches(data, "val", processes=2)  # 352 images
        {'drawn_hues': 4}
    """
    images = count_images(data, stage)
    if stage != "train":
        return {t: ceil(ceil(n / data.eval_batch_size) / processes) for t, n in images.items()}
    proportional = data.sampling == "proportional"
    sizes = sizes_of_steps(images, data.batch_size, proportional, Ranks(0, processes))
    return {t: n // max(1, sizes[t].size) // sizes[t].ranks.size for t, n in images.items()}
