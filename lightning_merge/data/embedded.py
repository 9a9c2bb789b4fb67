"""The package's own tasks (drawn.py) as a source, without files or downloads."""

from lightning_merge.core.errors import InputError
from lightning_merge.data.drawn import (
    DRAWN_TASKS,
    PRETRAINING_CLASSES,
    draw,
    draw_pretraining,
)
from lightning_merge.data.examples import Examples, array_examples
from lightning_merge.data.source import Source

PRETRAINING = "drawn_pretraining"
PRETRAINING_IMAGES = 14400


class EmbeddedTasks(Source):
    """The eight embedded tasks, and the task `drawn_pretraining` to train a base on.

    Root is ignored. The pretraining task is loaded only by its name and has no test split.

    Examples:
        >>> hues = EmbeddedTasks("").load("drawn_hues", "test")
        >>> len(hues), hues.item(0).size, hues.classes[:3]
        (400, (32, 32), ('red', 'orange', 'yellow'))
    """

    name = "drawn"
    layout = "nothing"

    def tasks(self) -> list[str]:
        """Return the names of the eight tasks."""
        return list(DRAWN_TASKS)

    def offers(self, task: str, split: str) -> bool:
        """Whether the task has the split; the one for pretraining has only train."""
        return task != PRETRAINING or split == "train"

    def load(self, task: str, split: str) -> Examples:
        """Draw the images of one split, 32 pixels wide and high."""
        if task == PRETRAINING and split == "train":
            images, labels = draw_pretraining(PRETRAINING_IMAGES)
            classes = tuple(map(str, range(PRETRAINING_CLASSES)))
        elif task in DRAWN_TASKS:
            images, labels = draw(task, split)
            classes = DRAWN_TASKS[task].classes
        else:
            raise InputError(
                f"task {task!r} is not drawn for {split}; choose one of {', '.join(DRAWN_TASKS)},"
                f" or {PRETRAINING} to pretrain"
            )
        return array_examples(classes, labels, images.permute(0, 2, 3, 1).contiguous().numpy())
