"""The images of one split before preprocessing, and how they are read and recognised as whole."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lightning_merge.core.errors import InputError


@dataclass(frozen=True)
class Examples:
    """One split of one task, before preprocessing.

    The functions are module-level ones with their data bound, so that worker processes that
    are not forked get them too.

    Args:
        classes: class names in the order of the labels.
        labels: int64 [n].
        image: index -> RGB image; raises InputError where the file is no image.
        content: index -> the bytes that identify an image, for duplicates between splits;
            raises InputError where they are evidently no whole image.
    """

    classes: tuple[str, ...]
    labels: Tensor
    image: Callable[[int], Image.Image]
    content: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.labels)


def file_examples(classes: Sequence[str], labels: Sequence[int], files: list[Path]) -> Examples:
    """Return examples that are image files, one path per label."""
    return encoded_examples(
        classes, labels, partial(_read_file, files), partial(_name_of_file, files)
    )


def encoded_examples(
    classes: Sequence[str],
    labels: Sequence[int] | Tensor,
    read: Callable[[int], bytes],
    where: Callable[[int], str],
) -> Examples:
    """Return examples that are encoded images.

    Args:
        classes: class names in the order of the labels.
        labels: one number per image.
        read: index -> the encoded image.
        where: index -> what to call the image in messages.
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
    """Return examples that are pixels, grey [n, h, w] or RGB [n, h, w, 3], of uint8."""
    return Examples(
        tuple(classes),
        torch.as_tensor(labels, dtype=torch.long),
        image=partial(_array_image, pixels),
        content=partial(_array_content, pixels),
    )


def decode(data: bytes, where: str) -> Image.Image:
    """Return an encoded image as RGB.

    Raises:
        InputError: the bytes are no whole image; the message names `where`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's readers raise errors of many kinds
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(
            f"{where} is not a readable image ({reason}); replace or remove it"
        ) from None


def looks_whole(data: bytes) -> bool:
    """Whether the bytes begin and end as a JPEG, PNG or WebP file does; costs nothing.

    A truncated file lacks its end marker, or the length that its header announces.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return data.endswith(b"\xff\xd9")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data.endswith(b"IEND\xaeB`\x82")
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return is_webp and int.from_bytes(data[4:8], "little") + 8 <= len(data)


def _read_file(files: list[Path], i: int) -> bytes:
    try:
        return files[i].read_bytes()
    except OSError as error:
        raise InputError(f"{files[i]} cannot be read: {error.strerror or error}") from None


def _name_of_file(files: list[Path], i: int) -> str:
    return str(files[i])


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
