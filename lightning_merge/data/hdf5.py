"""Images in HDF5 files, read one by one, as PatchCamelyon has them; needs the package h5py."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_merge.data.examples import Examples


def hdf5_labels(file: Path, key: str) -> Tensor:
    """Return the labels [n] in a file, whatever axes of length 1 they have.

    Args:
        file: HDF5 file.
        key: Name of the data set in it.

    Examples:
        >>> import h5py
        >>> with h5py.File("y.h5", "w") as stored:
        ...     stored["y"] = np.array([[1], [0]])
        >>> hdf5_labels(Path("y.h5"), "y")
        tensor([1, 0])
    """
    import h5py

    with h5py.File(file) as stored:
        return torch.as_tensor(stored[key][:].reshape(-1), dtype=torch.long)


def hdf5_examples(
    classes: Sequence[str], labels: Tensor, files: Sequence[Path], key: str
) -> Examples:
    """Return examples whose pixels stay in HDF5 files until they are used.

    Args:
        classes: Class names in the order of the labels.
        labels: One number per image.
        files: HDF5 files, whose images follow one another.
        key: Name of the images in each, uint8 [n, h, w, 3].

    Examples:
        >>> import h5py
        >>> with h5py.File("x.h5", "w") as stored:
        ...     stored["x"] = np.zeros((2, 8, 4, 3), np.uint8)
        >>> tissue = hdf5_examples(["no", "yes"], torch.tensor([1, 0]), [Path("x.h5")], "x")
        >>> tissue.item(1).size
        (4, 8)
    """
    import h5py

    places: list[tuple[Path, int]] = []
    for file in files:
        with h5py.File(file) as stored:
            places += [(file, row) for row in range(len(stored[key]))]
    return Examples(
        tuple(classes),
        labels,
        item=partial(_image, places, key),
        content=partial(_bytes, places, key),
    )


def _read(places: list[tuple[Path, int]], key: str, i: int) -> NDArray[np.uint8]:
    import h5py

    file, row = places[i]
    with h5py.File(file) as stored:
        return np.asarray(stored[key][row], dtype=np.uint8)


def _image(places: list[tuple[Path, int]], key: str, i: int) -> Image.Image:
    return Image.fromarray(_read(places, key, i)).convert("RGB")


def _bytes(places: list[tuple[Path, int]], key: str, i: int) -> bytes:
    return _read(places, key, i).tobytes()
