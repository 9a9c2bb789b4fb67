"""Data sets that torchvision's classes find on disk; nothing is downloaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_merge.core.errors import InputError, warn
from lightning_merge.data.examples import Examples, array_examples, file_examples
from lightning_merge.data.hdf5 import hdf5_examples, hdf5_labels
from lightning_merge.data.layouts import TorchvisionLayout, Undivided
from lightning_merge.data.published import find_lists, listed_rows
from lightning_merge.data.source import Source
from lightning_merge.data.splits import complement, stratified_indices
from lightning_merge.data.tasks import TASKS, TaskSpec, task_spec

OWN_SPLIT_SEED = 0  # of data sets without test images of their own; never to be changed


class TorchvisionData(Source):
    """Tasks of the table in torchvision's layout, below root or root/<task>.

    SUN397, EuroSAT and RESISC45 come without a division into train and test. Published lists of
    images divide them, and images in no list are left out. Without lists this package divides
    them: `test_share` of every class is test, sampled with a fixed seed from the sorted paths, so
    another set of files is divided differently. Results on this division are not comparable with
    those of papers, whose experts have trained on some of these test images; tables mark them.

    Args:
        root: Folder that holds the data sets.
        splits: Folder of the lists, if there are any.

    Raises:
        InputError: `splits` holds no list of any task.

    Examples:
        >>> source = TorchvisionData("nowhere")
        >>> source.own_split("sun397"), source.own_split("mnist")
        (True, False)
    """

    name = "torchvision"
    layout = "data sets as torchvision unpacks them"
    takes_splits = True

    def __init__(self, root: str, splits: str | None = None) -> None:
        super().__init__(root)
        self.splits = None if splits is None else Path(splits)
        layouts = (spec.torchvision for spec in TASKS.values() if spec.torchvision)
        undivided = (layout.undivided for layout in layouts if layout.undivided)
        names = [name for each in undivided for part in each.lists.values() for name in part]
        if self.splits is not None and not any((self.splits / name).is_file() for name in names):
            raise InputError(
                f"data.splits={splits!r} does not hold any of {', '.join(names)}; give the "
                "folder of published lists, or leave it out"
            )

    def tasks(self) -> list[str]:
        """Return the tasks of the table whose train images are below root."""
        self.folder()
        return [name for name in TASKS if self._present(name)]

    def _present(self, task: str) -> bool:
        try:
            self._open(task_spec(task), "train")
        except InputError:
            return False
        return True

    def own_split(self, task: str) -> bool:
        """Whether a data set comes undivided and no published list divides it."""
        layout = task_spec(task).torchvision
        undivided = None if layout is None else layout.undivided
        return undivided is not None and not self._lists(task, undivided)

    def _lists(self, task: str, undivided: Undivided) -> dict[str, list[Path]]:
        return {} if self.splits is None else find_lists(task, undivided.lists, self.splits)

    def load(self, task: str, split: str) -> Examples:
        """Return one split of a data set; image files are decoded when they are read."""
        spec = task_spec(task)
        parts, folder, undivided = self._open(spec, split)
        if undivided is None:
            return _examples(spec, parts, folder)
        files = _files(parts[0])
        order = sorted(range(len(files)), key=files.__getitem__)
        files, labels = [files[row] for row in order], _labels(spec, parts[0])[order]
        if lists := self._lists(task, undivided):
            rows = listed_rows(task, files, lists)[split]
        else:
            rows = self._own_rows(task, undivided, labels, split)
        chosen = [files[row] for row in rows.tolist()]
        return file_examples(_classes(spec, parts[0]), labels[rows], chosen, folder)

    def _own_rows(self, task: str, undivided: Undivided, labels: Tensor, split: str) -> Tensor:
        if self.splits is not None:
            names = ", ".join((*undivided.train_lists, *undivided.test_lists))
            warn(
                f"task {task!r}: data.splits={str(self.splits)!r} holds none of {names}; this "
                "package divides the task itself, as tables note"
            )
        rows = stratified_indices(labels, undivided.test_share, OWN_SPLIT_SEED)
        return rows if split == "test" else complement(rows, len(labels))

    def _open(self, spec: TaskSpec, split: str) -> tuple[list[Any], Path, Undivided | None]:
        """Return torchvision's data sets of a split, their folder, and how to divide them."""
        root, layout = self.folder(), spec.torchvision
        if layout is None:
            raise self.missing(
                spec.name, f"torchvision reads only {', '.join(TASKS)}; use data.source=folders"
            )
        arguments = layout.train if split == "train" or layout.undivided else layout.test
        opened = [self._open_one(spec, layout, root, given) for given in arguments]
        return [part for part, _ in opened], opened[0][1], layout.undivided

    def _open_one(
        self, spec: TaskSpec, layout: TorchvisionLayout, root: Path, arguments: Mapping[str, Any]
    ) -> tuple[Any, Path]:
        """Return one of torchvision's data sets and the folder where it was found."""
        from torchvision import datasets

        faults = []
        for place in (root / layout.folder, root / spec.name / layout.folder):
            try:
                return getattr(datasets, layout.dataset)(str(place), **arguments), place
            except Exception as error:  # a user's files and another library's readers
                faults.append(f"{place}: {error}")
        raise self.missing(spec.name, f"torchvision's {layout.dataset} found no data; {faults[0]}")


def _examples(spec: TaskSpec, parts: Sequence[Any], folder: Path) -> Examples:
    """Return the images of torchvision's data sets, one after the other."""
    labels = torch.cat([_labels(spec, part) for part in parts])
    classes = _classes(spec, parts[0])
    if int(labels.max()) >= len(classes):
        raise InputError(
            f"task {spec.name!r}: label {int(labels.max())} is out of range for {len(classes)} "
            "classes; get the data set again"
        )
    if hasattr(parts[0], "h5py"):
        return hdf5_examples(classes, labels, [_hdf5_file(part, "images") for part in parts], "x")
    if (pixels := [_pixels(part) for part in parts])[0] is not None:
        return array_examples(classes, labels, np.concatenate(pixels))  # type: ignore[arg-type]
    return file_examples(classes, labels, [file for p in parts for file in _files(p)], folder)


def _classes(spec: TaskSpec, dataset: Any) -> list[str]:
    """Return the class names in the order of the labels, as the row gives them or the data set."""
    if spec.torchvision and spec.torchvision.classes:
        return list(spec.torchvision.classes)
    names = getattr(dataset, "wnids", None) or dataset.classes  # ImageNet has synonyms as classes
    return [name.partition(" - ")[0] for name in names]


def _labels(spec: TaskSpec, dataset: Any) -> Tensor:
    """Return the labels, counted from 0."""
    first = spec.torchvision.first_label if spec.torchvision else 0
    for name in ("targets", "labels", "_labels"):
        if hasattr(dataset, name):
            return torch.as_tensor(getattr(dataset, name), dtype=torch.long) - first
    if hasattr(dataset, "h5py"):
        return hdf5_labels(_hdf5_file(dataset, "targets"), "y")
    labels = [label for _, label in dataset._samples]
    if None in labels:
        raise InputError(f"task {spec.name!r} has images without labels. {spec.obtain}")
    return torch.tensor(labels)


def _hdf5_file(dataset: Any, what: str) -> Path:
    """Return a file of PCAM."""
    return Path(dataset._base_folder) / dataset._FILES[dataset._split][what][0]


def _files(dataset: Any) -> list[Path]:
    for name in ("samples", "_samples"):
        if hasattr(dataset, name):
            return [Path(path) for path, _ in getattr(dataset, name)]
    files = dataset._images if hasattr(dataset, "_images") else dataset._image_files
    return [Path(path) for path in files]


def _pixels(dataset: Any) -> NDArray[np.uint8] | None:
    """Return all pixels, [n, h, w] or [n, h, w, 3], or None if the images are files.

    SVHN and STL10 keep channels first; FER2013 keeps a list of tensors.
    """
    if hasattr(dataset, "data"):
        pixels: NDArray[np.uint8] = np.asarray(dataset.data)
        return np.moveaxis(pixels, 1, -1) if np.shape(pixels)[1] == 3 else pixels
    samples: Any = getattr(dataset, "_samples", ())
    if len(samples) and isinstance(samples[0][0], Tensor):
        return torch.stack([image for image, _ in samples]).numpy()
    return None
