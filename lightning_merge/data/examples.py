"""The images of one split before preprocessing, and how they are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

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

    The functions are module-level ones with their data bound, so that worker processes that
    are not forked get them too.

    Args:
        classes: Class names in the order of the labels.
        labels: int64 [n].
        image: Index -> RGB image; raises InputError where the file is no image.
        content: Index -> the bytes that identify an image, for duplicates between splits;
            raises InputError where they are evidently no whole image.
        file: Index -> the image's file, from the task's folder on; "" where it has none.
    """

    classes: tuple[str, ...]
    labels: Tensor
    image: Callable[[int], Image.Image]
    content: Callable[[int], bytes]
    file: Callable[[int], str] = _no_file

    def __len__(self) -> int:
        return len(self.labels)


def file_examples(
    classes: Sequence[str], labels: Sequence[int] | Tensor, files: list[Path], folder: Path
) -> Examples:
    """Return examples that are image files, one path per label, in the task's folder."""
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
    """Return examples that are encoded images.

    Args:
        classes: Class names in the order of the labels.
        labels: One number per image.
        read: Index -> the encoded image.
        where: Index -> what to call the image in messages.
    """
    return Examples(
        tuple(classes),
        torch.as_tensor(labels, dtype=torch.long),
        image=partial(_decode_at, read, where),
        content=partial(_whole_at, read, where),
    )


def array_examples(
    classes: Sequence[str], labels: Sequence[int] | Tensor, pixels: NDArray[np.uint8]
) -> Examples:
    """Return examples that are pixels, grey [n, h, w] or RGB [n, h, w, 3], of uint8.

    Raises:
        InputError: They are of another type, which does not say which value is white.
    """
    if pixels.dtype != np.uint8:
        raise InputError(f"images of {pixels.dtype}: convert them to uint8, of which 255 is white")
    return Examples(
        tuple(classes),
        torch.as_tensor(labels, dtype=torch.long),
        image=partial(_array_image, pixels),
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
