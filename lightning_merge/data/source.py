"""Where images come from: one small adapter per layout on disk."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image
from torch import Tensor

from lightning_merge.core.errors import InputError


@dataclass(frozen=True)
class Examples:
    """One split of one task, before preprocessing.

    Args:
        classes: class names in the order of the labels.
        labels: int64 [n].
        image: index -> RGB image; raises InputError where the file is no image.
        content: index -> the bytes that identify an image, for duplicates between splits.
    """

    classes: tuple[str, ...]
    labels: Tensor
    image: Callable[[int], Image.Image]
    content: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.labels)


class Source(ABC):
    """A place that holds tasks; subclasses know one layout.

    Args:
        root: folder or file that holds the tasks.
    """

    name: ClassVar[str]

    def __init__(self, root: str) -> None:
        self.root = root

    @abstractmethod
    def tasks(self) -> list[str]:
        """Return the names of the tasks that are here."""

    @abstractmethod
    def load(self, task: str, split: str) -> Examples:
        """Return the examples of `split` ("train" or "test") of a task.

        Raises:
            InputError: the task or split is not here; the message says how to get it.
        """


def source_names() -> list[str]:
    """Return the names that `data.source` accepts."""
    return sorted(cls.name for cls in Source.__subclasses__())


def open_source(name: str, root: str) -> Source:
    """Return the source called `name` at `root`.

    Raises:
        InputError: there is no source of that name.
    """
    for cls in Source.__subclasses__():
        if cls.name == name:
            return cls(root)
    raise InputError(f"data.source={name!r} is not known; choose one of {source_names()}")


def same_classes(task: str, train: Sequence[str], test: Sequence[str]) -> None:
    """Raise InputError unless both splits of a task have the same classes."""
    if tuple(train) != tuple(test):
        odd = sorted(set(train) ^ set(test))
        raise InputError(f"task {task!r}: train and test differ in the classes {odd}")
