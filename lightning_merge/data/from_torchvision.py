"""Data sets as torchvision's classes find them on disk; nothing is downloaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_merge.core.errors import InputError
from lightning_merge.data.examples import Examples, array_examples, file_examples
from lightning_merge.data.source import Source
from lightning_merge.data.splits import complement, stratified_indices
from lightning_merge.data.tasks import TASKS, TaskSpec, TorchvisionLayout, task_spec

OWN_SPLIT_SEED = 0  # of data sets without test images of their own; never to be changed


class TorchvisionData(Source):
    """Tasks of the table in torchvision's layout, below root or root/<task>.

    SUN397, EuroSAT and RESISC45 come without a division into train and test. They get one of
    this package: `test_share` of every class is test, drawn once with a fixed seed from the
    sorted paths. Numbers on it are not comparable with those on the partitions of papers,
    and another set of files is divided anew.
    """

    name = "torchvision"
    layout = "data sets as torchvision unpacks them"

    def tasks(self) -> list[str]:
        """Return the tasks of the table whose train images are here."""
        self.folder()
        return [name for name in TASKS if self._present(name)]

    def _present(self, task: str) -> bool:
        try:
            self.load(task, "train")
        except InputError:
            return False
        return True

    def load(self, task: str, split: str) -> Examples:
        """Return one split of a data set; images stay encoded where the data set has files."""
        root, spec = self.folder(), task_spec(task)
        layout = spec.torchvision
        if layout is None:
            raise self.missing(
                task, f"torchvision reads only {', '.join(TASKS)}; use data.source=folders"
            )
        official = layout.train if split == "train" or layout.test_share else layout.test
        parts, places = zip(*(self._open(spec, layout, root, a) for a in official), strict=True)
        if layout.test_share is None:
            return _examples(spec, parts, places[0])
        return _own_split(spec, parts[0], places[0], split, layout.test_share)

    def _open(
        self, spec: TaskSpec, layout: TorchvisionLayout, root: Path, arguments: Mapping[str, Any]
    ) -> tuple[Any, Path]:
        """Return a data set of torchvision's, and the folder that it was found in."""
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
    labels = torch.cat([_labels(part) for part in parts])
    classes = _classes(spec, parts[0])
    if int(labels.max()) >= len(classes):
        raise InputError(f"task {spec.name!r}: label {int(labels.max())} of {len(classes)} classes")
    if hasattr(parts[0], "data"):
        return array_examples(classes, labels, np.concatenate([_pixels(part) for part in parts]))
    return file_examples(classes, labels, [file for p in parts for file in _files(p)], folder)


def _own_split(spec: TaskSpec, dataset: Any, folder: Path, split: str, share: float) -> Examples:
    """Return one side of the fixed division of a data set that comes undivided."""
    files = _files(dataset)
    order = sorted(range(len(files)), key=files.__getitem__)
    labels = _labels(dataset)[order]
    rows = stratified_indices(labels, share, OWN_SPLIT_SEED)
    if split == "train":
        rows = complement(rows, len(files))
    chosen = [files[order[row]] for row in rows.tolist()]
    return file_examples(_classes(spec, dataset), labels[rows], chosen, folder)


def _classes(spec: TaskSpec, dataset: Any) -> list[str]:
    """Return the data set's class names, or numbers where the spec's words have the names."""
    names = getattr(dataset, "classes", None)
    if names and not spec.words:
        return [name.partition(" - ")[0] for name in names]
    if names and set(names) & set(spec.words):
        return list(names)
    count = spec.classes or 0
    return [str(number).zfill(len(str(count - 1))) for number in range(count)]


def _labels(dataset: Any) -> Tensor:
    for name in ("targets", "labels", "_labels"):
        if hasattr(dataset, name):
            return torch.as_tensor(getattr(dataset, name), dtype=torch.long)
    return torch.tensor([label for _, label in dataset._samples])


def _files(dataset: Any) -> list[Path]:
    for name in ("samples", "_samples"):
        if hasattr(dataset, name):
            return [Path(path) for path, _ in getattr(dataset, name)]
    return [Path(path) for path in dataset._image_files]


def _pixels(dataset: Any) -> NDArray[np.uint8]:
    """Return all pixels, [n, h, w] or [n, h, w, 3]; SVHN keeps channels first."""
    pixels = np.asarray(dataset.data)
    return pixels.transpose(0, 2, 3, 1) if pixels.ndim == 4 and pixels.shape[1] == 3 else pixels
