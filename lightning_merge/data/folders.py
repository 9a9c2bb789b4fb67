"""Plain image folders: `<root>/<task>/{train,test}/<class>/<image>`."""

from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_merge.core.errors import InputError
from lightning_merge.data.source import Examples, Source
from lightning_merge.data.tasks import task_spec


class ImageFolders(Source):
    """Tasks as folders of images, one folder per class; classes in alphabetical order."""

    name = "folders"

    def tasks(self) -> list[str]:
        """Return the folders of root that have a train or a test folder."""
        root = Path(self.root)
        if not root.is_dir():
            raise InputError(f"data.root={self.root!r} is not a folder; give the folder of tasks")
        return sorted(p.name for p in root.iterdir() if any((p / s).is_dir() for s in SPLITS))

    def load(self, task: str, split: str) -> Examples:
        """Return the examples of one folder."""
        folder = Path(self.root) / task / split
        if not folder.is_dir():
            raise InputError(
                f"task {task!r} has no data: {folder} is not a folder. {task_spec(task).obtain}"
            )
        classes = sorted(p for p in folder.iterdir() if p.is_dir())
        if not classes:
            raise InputError(f"task {task!r}: {folder} has no class folders; give one per class")
        files: list[Path] = []
        labels: list[int] = []
        for label, directory in enumerate(classes):
            found = sorted(p for p in directory.iterdir() if p.suffix.lower() in IMG_EXTENSIONS)
            if not found:
                raise InputError(f"task {task!r}: class folder {directory} is empty; fill or remove")
            files += found
            labels += [label] * len(found)
        return Examples(
            classes=tuple(p.name for p in classes),
            labels=torch.tensor(labels),
            image=lambda i: _open(files[i]),
            content=lambda i: files[i].read_bytes(),
        )


SPLITS = ("train", "test")


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise InputError(f"{path} is not a readable image ({error}); replace or remove it") from None
