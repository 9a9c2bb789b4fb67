"""Plain image folders: `<root>/<task>/{train,test}/<class>/<image>`."""

from pathlib import Path

from lightning_merge.core.checkpoints.names import composed, enumerate_names
from lightning_merge.core.errors import InputError
from lightning_merge.data.examples import Examples, file_examples
from lightning_merge.data.source import Source

SPLITS = ("train", "test")
SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
LITTER = frozenset({"thumbs.db", "desktop.ini"})  # left by Windows in folders of images


class ImageFolders(Source):
    """Tasks as folders of images, one folder per class; classes in alphabetical order.

    Examples:
        >>> from PIL import Image
        >>> for animal in ("dog", "cat"):
        ...     Path(f"pets/train/{animal}").mkdir(parents=True)
        ...     Image.new("RGB", (8, 8)).save(f"pets/train/{animal}/0.png")
        >>> source = ImageFolders(".")
        >>> source.tasks(), source.load("pets", "train").classes
        (['pets'], ('cat', 'dog'))
    """

    name = "folders"
    layout = "<task>/{train,test}/<class>/<image>"

    def tasks(self) -> list[str]:
        """Return the folders of root that have a train or a test folder."""
        folders = (p for p in self.folder().iterdir() if any((p / s).is_dir() for s in SPLITS))
        return sorted({composed(p.name) for p in folders})

    def offers(self, task: str, split: str) -> bool:
        """Whether the task has a folder for the split, or no folder at all."""
        folder = self.place(task)
        return (folder / split).is_dir() or not folder.is_dir()

    def load(self, task: str, split: str) -> Examples:
        """Return the examples of one folder; a class may have no test image."""
        place = self.place(task)
        folder = place / split
        if not folder.is_dir():
            here = enumerate_names(self.tasks(), 12) or "none"
            raise self.missing(task, f"{folder} is not a folder (tasks found: {here})")
        classes = sorted(
            (p for p in folder.iterdir() if p.is_dir() and not _is_litter(p)), key=_name
        )
        if not classes:
            raise InputError(f"task {task!r}: {folder} has no class folders; make one per class")
        images = [_images(task, directory) for directory in classes]
        for directory, files in zip(classes, images, strict=True):
            if split == "train" and not files:
                raise InputError(
                    f"task {task!r}: class folder {directory} is empty; fill or remove it"
                )
        return file_examples(
            classes=[p.name for p in classes],
            labels=[label for label, files in enumerate(images) for _ in files],
            files=[file for files in images for file in files],
            folder=place,
        )


def _images(task: str, directory: Path) -> list[Path]:
    files = sorted((p for p in directory.iterdir() if not _is_litter(p)), key=_name)
    for path in files:
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"task {task!r}: {path} is not an image ({', '.join(sorted(SUFFIXES))}); "
                "move it out of the class folder"
            )
    return files


def _name(path: Path) -> tuple[str, str]:
    """Return a key that sorts names in the same order on every system."""
    return composed(path.name), path.name


def _is_litter(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in LITTER
