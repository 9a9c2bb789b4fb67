"""Where images come from: one small adapter per layout on disk."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from lightning_merge.core.checkpoints.names import composed, enumerate_names
from lightning_merge.core.errors import InputError
from lightning_merge.core.subclasses import concrete
from lightning_merge.data.examples import Examples
from lightning_merge.data.tasks import task_spec

__all__ = ["Examples", "Source", "open_source", "source_names"]


class Source(ABC):
    """A place that holds tasks; each subclass knows one layout.

    Args:
        root: Folder or file that holds the tasks.

    Attributes:
        name: Name of the layout in `data.source`.
        layout: Where below data.root a task's images are expected, for messages.
        takes_splits: Whether `data.splits` is a second argument.

    Examples:
        >>> import numpy as np
        >>> from lightning_merge.data.examples import array_examples
        >>> class Blank(Source):
        ...     name, layout = "blank", "nothing"
        ...     def tasks(self):
        ...         return ["blank"]
        ...     def load(self, task, split):
        ...         return array_examples(["white"], [0], np.full((1, 8, 8), 255, np.uint8))
        >>> open_source("blank", root="").load("blank", "test").item(0).getpixel((0, 0))
        (255, 255, 255)
    """

    name: ClassVar[str]
    layout: ClassVar[str]
    takes_splits: bool = False

    def __init__(self, root: str) -> None:
        self.root = root

    @abstractmethod
    def tasks(self) -> list[str]:
        """Return the names of the tasks that the source has."""

    @abstractmethod
    def load(self, task: str, split: str) -> Examples:
        """Return the examples of `split` ("train" or "test") of a task.

        Raises:
            InputError: The task or split is missing; the message says how to get it.
        """

    def offers(self, task: str, split: str) -> bool:
        """Whether a task is expected to have a split; only `load` finds out whether it has."""
        return True

    def own_split(self, task: str) -> bool:
        """Whether this package, not a publication, divides a data set into train and test."""
        return False

    def name_of(self, task: str) -> str:
        """Return the name in `data.source` of the layout of one task."""
        return self.name

    def folder(self) -> Path:
        """Return root, which must be a folder.

        Raises:
            InputError: Root is not a folder.
        """
        root = Path(self.root)
        if not self.root or not root.is_dir():
            raise InputError(
                f"data.root={self.root!r} is not a folder; give the folder that holds {self.layout}"
            )
        return root

    def place(self, task: str) -> Path:
        """Return the path of a task below root, in the Unicode form that its name has on disk.

        Raises:
            InputError: Root is not a folder, or has the name in two forms.
        """
        folder = self.folder()
        paths = [path for path in folder.iterdir() if composed(path.name) == composed(task)]
        if len(paths) > 1:
            names = " and ".join(sorted(ascii(path.name) for path in paths))
            raise InputError(
                f"data.root={self.root!r} has task {task!r} in two Unicode forms, {names}; put "
                "both into one folder"
            )
        return paths[0] if paths else folder / task

    def missing(self, task: str, reason: str) -> InputError:
        """Return the error for a task without data; its message says how to get them."""
        return InputError(
            f"task {task!r} has no data: {reason}. data.source={self.name!r} expects "
            f"{self.layout} below data.root={self.root!r}. {task_spec(task).obtain}"
        )


class SourceOfEach(Source):
    """Tasks that each have their own source.

    Args:
        sources: Task -> its source.

    Examples:
        >>> open_source({"cars": "folders", "drawn_hues": "drawn"}, "data").tasks()
        ['cars', 'drawn_hues']
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        super().__init__(", ".join(dict.fromkeys(source.root for source in sources.values())))
        self.sources = sources
        self.takes_splits = any(source.takes_splits for source in sources.values())

    def tasks(self) -> list[str]:
        """Return the tasks that have a source."""
        return list(self.sources)

    def load(self, task: str, split: str) -> Examples:
        """Return the examples of a split from the task's source."""
        return self._of(task).load(task, split)

    def offers(self, task: str, split: str) -> bool:
        """Whether the task's source is expected to have a split."""
        return self._of(task).offers(task, split)

    def own_split(self, task: str) -> bool:
        """Whether the task's source divides the task without a published division."""
        return self._of(task).own_split(task)

    def name_of(self, task: str) -> str:
        """Return the name of the task's source."""
        return self._of(task).name

    def _of(self, task: str) -> Source:
        if task not in self.sources:
            raise InputError(
                f"task {task!r} has no source: data.source names only those of "
                f"{enumerate_names(self.sources, 12)}; add it there, or leave it out of data.tasks"
            )
        return self.sources[task]


def source_names() -> list[str]:
    """Return the names that `data.source` accepts.

    Examples:
        >>> "folders" in source_names()
        True
    """
    return sorted(_kinds())


def _kinds() -> dict[str, type[Source]]:
    """Return the sources of this package and those that a user imported, by name."""
    classes = concrete(Source, __package__).values()  # type: ignore[type-abstract]
    return {cls.name: cls for cls in classes if cls is not SourceOfEach}


def open_source(
    name: str | Mapping[str, str],
    root: str,
    roots: Mapping[str, str] | None = None,
    splits: str | None = None,
) -> Source:
    """Return the source called `name` at `root`, or one that has a source for each task.

    Args:
        name: Name of the source, or task -> name.
        root: Folder or file.
        roots: Task -> its own root, if `name` is a mapping.
        splits: Folder of published lists, for sources that take them.

    Raises:
        InputError: The name is unknown, `roots` has a task that `name` lacks, or the source takes
            no lists.

    Examples:
        >>> open_source("drawn", root="").tasks()[:2]
        ['digits8x8', 'drawn_arrows']
    """
    roots = roots or {}
    if unknown := set(roots) - set(() if isinstance(name, str) else name):
        raise InputError(
            f"data.roots names {enumerate_names(sorted(unknown))}, but data.source={name!r} gives "
            "no source for it; give one for every task: {TASK: SOURCE, ...}"
        )
    source = (
        _open(name, root, splits)
        if isinstance(name, str)
        else SourceOfEach(_open_each(name, root, roots, splits))
    )
    if splits is not None and not source.takes_splits:
        raise InputError(
            f"data.splits={splits!r}: data.source={name!r} brings its own division into train and "
            "test; leave data.splits out"
        )
    return source


def _open_each(
    names: Mapping[str, str], root: str, roots: Mapping[str, str], splits: str | None
) -> dict[str, Source]:
    """Return task -> its source; tasks with the same name and root share one."""
    places = {composed(task): (name, roots.get(task, root)) for task, name in names.items()}
    opened = {place: _open(*place, splits) for place in dict.fromkeys(places.values())}
    return {task: opened[place] for task, place in places.items()}


def _open(name: str, root: str, splits: str | None) -> Source:
    kinds = _kinds()
    if name not in kinds:
        raise InputError(
            f"data.source={name!r} is unknown; choose one of {', '.join(sorted(kinds))}"
        )
    cls = kinds[name]
    return cls(root, splits) if cls.takes_splits else cls(root)  # type: ignore[call-arg]
