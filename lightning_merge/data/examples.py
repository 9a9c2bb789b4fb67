"""The examples of one split before preprocessing, and the functions that read images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_merge.core.errors import InputError
from lightning_merge.data.decode import decode, looks_whole


def _no_file(i: int) -> str:
    return ""


@dataclass(frozen=True)
class Examples:
    """One split of one task, before preprocessing.

    The functions should be module-level ones with their data bound (`functools.partial`), because
    worker processes that are not forked receive them pickled.

    Args:
        classes: Class names in the order of the labels.
        labels: Classes, int64 [n].
        item: Index -> RGB image, or the texts of an example; raises InputError if the file is not
            an image.
        content: Index -> the bytes that identify an example, to find duplicates between splits;
            raises InputError if they are evidently not a whole image.
        file: Index -> the example's file relative to the task's folder; "" if it has none.
        exact: Index -> the bytes that a run's record depends on, if others than `content`.
        kind: What the examples are, "images" or "texts".
        parts: Number of texts that an example has; 1 for images.
        answers: Number of answers between which T5 chooses.
        groups: Examples with the same number stay on one side of a division, int64 [n]; every
            example has its own if None.

    Examples:
        >>> black = Image.new("RGB", (8, 8))
        >>> images = Examples(("cat", "dog"), torch.tensor([1]), lambda i: black, lambda i: b"0")
        >>> len(images), images.classes[images.labels[0]]
        (1, 'dog')
    """

    classes: tuple[str, ...]
    labels: Tensor
    item: Callable[[int], Any]
    content: Callable[[int], bytes]
    file: Callable[[int], str] = _no_file
    exact: Callable[[int], bytes] | None = None
    kind: str = "images"
    parts: int = 1
    answers: int = 0
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


def file_examples(
    classes: Sequence[str], labels: Sequence[int] | Tensor, files: list[Path], folder: Path
) -> Examples:
    """Return examples that are read from image files.

    Args:
        classes: Class names in the order of the labels.
        labels: One number per image.
        files: One path per image.
        folder: The task's folder, which has all files below it.

    Examples:
        >>> Image.new("RGB", (8, 4)).save("0.png")
        >>> pets = file_examples(["cat"], [0], [Path("0.png")], Path("."))
        >>> pets.item(0).size, pets.file(0)
        ((8, 4), '0.png')
    """
    encoded = encoded_examples(
        classes, labels, partial(_read_file, files), partial(_name_of_file, files)
    )
    return replace(encoded, file=partial(_path_in, folder, files))


def encoded_examples(
    classes: Sequence[str],
    labels: Sequence[int] | Tensor,
    read: Callable[[int], bytes],
    where: Callable[[int], str],
) -> Examples:
    """Return examples that are decoded from bytes.

    Args:
        classes: Class names in the order of the labels.
        labels: One number per image.
        read: Index -> the encoded image.
        where: Index -> what to call the image in messages.

    Examples:
        >>> pets = encoded_examples(["cat"], [0], lambda i: b"GIF8", lambda i: f"image {i} of pets")
        >>> pets.item(0)
        Traceback (most recent call last):
        lightning_merge.core.errors.InputError: image 0 of pets is not a readable image ...
    """
    return Examples(
        tuple(classes),
        torch.as_tensor(labels, dtype=torch.long),
        item=partial(_decode_at, read, where),
        content=partial(_whole_at, read, where),
    )


def array_examples(
    classes: Sequence[str], labels: Sequence[int] | Tensor, pixels: NDArray[np.uint8]
) -> Examples:
    """Return examples that are pixels.

    Args:
        classes: Class names in the order of the labels.
        labels: One number per image.
        pixels: Grey [n, h, w] or RGB [n, h, w, 3], uint8.

    Raises:
        InputError: The pixels are not uint8, so the value of white is unknown.

    Examples:
        >>> pets = array_examples(["cat", "dog"], [1, 0], np.zeros((2, 8, 4), np.uint8))
        >>> pets.labels, pets.item(0).mode, pets.item(0).size
        (tensor([1, 0]), 'RGB', (4, 8))
    """
    if pixels.dtype != np.uint8:
        raise InputError(
            f"images of dtype {pixels.dtype}: convert them to uint8, where 255 is white"
        )
    return Examples(
        tuple(classes),
        torch.as_tensor(labels, dtype=torch.long),
        item=partial(_array_image, pixels),
        content=partial(_array_content, pixels),
    )


def _read_file(files: list[Path], i: int) -> bytes:
    try:
        return files[i].read_bytes()
    except OSError as error:
        raise InputError(f"{files[i]} cannot be read: {error.strerror or error}") from None


def _name_of_file(files: list[Path], i: int) -> str:
    return str(files[i])


def _path_in(folder: Path, files: list[Path], i: int) -> str:
    return files[i].relative_to(folder).as_posix()


def _decode_at(read: Callable[[int], bytes], where: Callable[[int], str], i: int) -> Image.Image:
    return decode(read(i), where(i))


def _whole_at(read: Callable[[int], bytes], where: Callable[[int], str], i: int) -> bytes:
    data = read(i)
    if not looks_whole(data):  # another format, bytes after the end, or a broken file
        decode(data, where(i))
    return data


def _array_image(pixels: NDArray[np.uint8], i: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels[i])).convert("RGB")


def _array_content(pixels: NDArray[np.uint8], i: int) -> bytes:
    return pixels[i].tobytes()
