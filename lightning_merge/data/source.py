"""Where images come from: one small adapter per layout on disk."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from lightning_merge.core.errors import InputError
from lightning_merge.core.names import composed
from lightning_merge.data.examples import Examples
from lightning_merge.data.tasks import task_spec

__all__ = ["Examples", "Source", "open_source", "source_names"]


class Source(ABC):
    """A place that holds tasks; subclasses know one layout.

    Args:
        root: folder or file that holds the tasks.

    Attributes:
        name: what `data.source` calls it.
        layout: where below data.root a task's images are expected, for messages.
    """

    name: ClassVar[str]
    layout: ClassVar[str]

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

    def offers(self, task: str, split: str) -> bool:
        """Whether a task is meant to have a split; `load` says whether it really has."""
        return True

    def folder(self) -> Path:
        """Return root, which has to be a folder.

        Raises:
            InputError: it is not.
        """
        root = Path(self.root)
        if not self.root or not root.is_dir():
            raise InputError(
                f"data.root={self.root!r} is not a folder; give the folder that holds {self.layout}"
            )
        return root

    def place(self, task: str) -> Path:
        """Return the path of a task below root, in whatever Unicode form the disk has its name.

        Raises:
            InputError: root is not a folder, or has the name in two forms.
        """
        folder = self.folder()
        found = [path for path in folder.iterdir() if composed(path.name) == composed(task)]
        if len(found) > 1:
            names = " and ".join(sorted(ascii(path.name) for path in found))
            raise InputError(
                f"data.root={self.root!r} has task {task!r} in two Unicode forms, {names}; put "
                "both into one folder"
            )
        return found[0] if found else folder / task

    def missing(self, task: str, found: str) -> InputError:
        """Return the error for a task without data, which says how to get it."""
        return InputError(
            f"task {task!r} has no data: {found}. data.source={self.name!r} expects "
            f"{self.layout} below data.root={self.root!r}. {task_spec(task).obtain}"
        )


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
