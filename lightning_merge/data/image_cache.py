"""Decoded images on disk: made once, then mapped into memory by all runs that share a folder."""

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch
from PIL import features
from torch import Tensor

from lightning_merge.core.checkpoints.digests import code_of, file_hash
from lightning_merge.core.checkpoints.files import PendingFile, remove_leftovers
from lightning_merge.core.errors import InputError, warn
from lightning_merge.data import decode, examples
from lightning_merge.models import image_preprocess as preprocessing
from lightning_merge.models.preprocess import Preprocess

FOLDER = ".images"
"""Folder beside run folders that holds their decoded images."""

_SUFFIX = ".pixels"
_LIBRARIES = ("pil", "jpg", "libjpeg_turbo", "jpg_2000", "webp", "avif", "libtiff")


class ImageCache:
    """A folder of decoded images of bounded size, which several processes may use at once.

    A file appears whole or not at all, and files that were not used for the longest time are
    removed first. Two processes that write the same images do not harm each other. If the folder
    cannot be written, a warning says so once and the images are decoded again next time.

    Args:
        folder: The folder; it need not exist.
        gib: Size in GiB that its files may have together.

    Examples:
        >>> cache = ImageCache(Path("cache"), 1.0)
        >>> cache.read("pets", 4) is None
        True
        >>> cache.write("pets", torch.arange(4, dtype=torch.uint8))
        >>> cache.read("pets", 4)
        tensor([0, 1, 2, 3], dtype=torch.uint8)
    """

    def __init__(self, folder: Path, gib: float) -> None:
        self.folder, self.gib = folder, gib
        self._given_up = False

    def read(self, key: str, size: int) -> Tensor | None:
        """Map a file into memory, so that processes share its pages; writes stay private.

        Args:
            key: Name of the file.
            size: Its size in bytes; a file of another size is damaged and is removed.

        Returns:
            Its bytes, uint8 [size]; None if there is no such file.
        """
        path = self._path(key)
        try:
            if path.stat().st_size != size:
                path.unlink()
                return None
            with suppress(OSError):  # a folder that is only readable
                os.utime(path)
            return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        except (OSError, RuntimeError):  # removed meanwhile, or unreadable
            return None

    def write(self, key: str, content: Tensor) -> None:
        """Write a file, and remove the oldest ones if there are too many.

        Args:
            key: Name of the file.
            content: Its bytes, uint8 [size].
        """
        if self._given_up:
            return
        if (gib := len(content) / 2**30) > self.gib:
            warn(
                f"data.image_cache_gib={self.gib:g}: a task's {gib:.2f} GiB of decoded images are "
                "not kept on disk; give more, or data.image_cache: none"
            )
            return
        try:
            self._make_room(key, len(content))
            file = PendingFile(self._path(key))
            try:
                file.reserve(len(content))
                file.write(0, content.numpy().data)
                file.flush()
                file.replace()
            finally:
                file.close()
        except (InputError, OSError) as fault:
            self._given_up = True
            warn(f"decoded images are not kept in {self.folder}, see data.image_cache: {fault}")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _make_room(self, key: str, size: int) -> None:
        """Remove old files until another one fits."""
        remove_leftovers(self.folder, rf"\..*\.tmp\{_SUFFIX}")
        others = sorted(self._others(key))
        for excess in range(len(others)):
            if size + sum(taken for _, taken, _ in others[excess:]) <= self.gib * 2**30:
                break
            others[excess][-1].unlink(missing_ok=True)

    def _others(self, key: str) -> Iterator[tuple[int, int, Path]]:
        """Yield when each other file was last used, its size and its path."""
        for path in self.folder.glob(f"[!.]*{_SUFFIX}"):
            with suppress(OSError):  # removed by another process
                status = path.stat()
                if path != self._path(key):
                    yield status.st_mtime_ns, status.st_size, path


class Decoded:
    """Transformed examples of one part of a task, with a mark for each that has been made.

    Args:
        count: Number of examples, n.
        shape: Shape of an example.
        dtype: Data type of its entries.
        cache: Where to keep them on disk; only in memory if None.
        key: Name of their file, see `image_key`.

    Attributes:
        inputs: The examples, [n, *shape]; undefined where `done` is false.
        done: Whether an example has been made, bool [n].

    Examples:
        >>> cache = ImageCache(Path("cache"), 1.0)
        >>> decoded = Decoded(2, (3, 4, 4), torch.uint8, cache, "pets")
        >>> decoded.put(1, torch.ones(3, 4, 4, dtype=torch.uint8))
        >>> decoded.keep()
        >>> Decoded(2, (3, 4, 4), torch.uint8, cache, "pets").done
        tensor([False,  True])
    """

    inputs: Tensor
    done: Tensor

    def __init__(
        self,
        count: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        cache: ImageCache | None = None,
        key: str = "",
    ) -> None:
        self.shape, self.dtype, self.cache, self.key = (count, *shape), dtype, cache, key
        self._size = math.prod(self.shape) * dtype.itemsize
        self._is_new = False
        if (content := self._stored()) is None:
            content = torch.empty(self._size + count, dtype=torch.uint8)
            content[-count:] = 0
        self._hold(content)

    def put(self, position: int, example: Tensor) -> None:
        """Store one example [*shape]."""
        self.inputs[position] = example
        self.done[position] = True
        self._is_new = True

    def keep(self) -> None:
        """Write the examples to disk if some are new, and release the memory that held them."""
        if self.cache is None or not self._is_new:
            return
        self._is_new = False
        if (other := self._stored()) is not None:  # of a process that decodes another share
            inputs, done = self._views(other)
            theirs = done & ~self.done
            self.inputs[theirs] = inputs[theirs]
            self.done |= theirs
        self.inputs[~self.done] = 0
        self.cache.write(self.key, self._content)
        mapped = self._stored()
        if mapped is not None and (self.done <= self._views(mapped)[1]).all():
            self._hold(mapped)

    def _stored(self) -> Tensor | None:
        if self.cache is None:
            return None
        return self.cache.read(self.key, self._size + self.shape[0])

    def _hold(self, content: Tensor) -> None:
        self._content = content
        self.inputs, self.done = self._views(content)

    def _views(self, content: Tensor) -> tuple[Tensor, Tensor]:
        inputs, done = content.split([self._size, self.shape[0]])
        return inputs.view(self.dtype).view(self.shape), done.view(torch.bool)


def image_key(hashes: Iterable[str], preprocess: Preprocess) -> str:
    """Return a digest of everything that the transformed examples of a part depend on.

    These are the examples' bytes and their order, the preprocessing, the code that decodes, and the
    libraries behind it.

    Args:
        hashes: A digest of each example.
        preprocess: The encoder's preprocessing.

    Examples:
        >>> from lightning_merge.models import ImagePreprocess
        >>> small, large = (ImagePreprocess(size, (0.5,) * 3, (0.5,) * 3) for size in (8, 16))
        >>> key = image_key(["a", "b"], small)
        >>> key == image_key(["a", "b"], small)
        True
        >>> key in (image_key(["b", "a"], small), image_key(["a", "b"], large))
        False
    """
    parts = [_decoder(), repr(preprocess), repr(code_of(preprocess)), *hashes]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


@lru_cache
def _decoder() -> str:
    """Name the libraries and the code that decode, with their versions."""
    libraries = [f"{name} {features.version(name)}" for name in _LIBRARIES]
    code = [file_hash(str(module.__file__)) for module in (decode, examples, preprocessing)]
    return " ".join([*libraries, metadata.version("torchvision"), *code])
