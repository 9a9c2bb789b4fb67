"""Files that are read while they are merged: by position, by many threads, and unchanged.

Files are read, not mapped into memory: where one is cut short, access to a map is SIGBUS, which
kills the process; here it is an error that names the file.
"""

import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, FileIO
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.flat import BLOCK, flat_bytes
from lightning_merge.core.errors import InputError


class SourceFile:
    """A file held open, so that it stays readable when another one takes its place.

    It is read into memory rather than mapped: a page that the disk cannot give, or that was cut
    off meanwhile, is then an error that can be told and not the end of the process. The file is
    closed when nothing refers to it any more.

    Attributes:
        path: Where the file was found.
        size: Its bytes.

    Raises:
        OSError: The file cannot be opened.
        InputError: It is empty or no regular file; without the path, see `reading`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._place = os.path.abspath(path)
        self._descriptor = _open(path)
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError("is no regular file: give the path of a checkpoint")
        if not status.st_size:
            raise InputError("is empty: copy or download it again")
        self.size = status.st_size
        self._stamp = _stamp(status)

    def __reduce__(self) -> NoReturn:
        """Return a copy, or another process, would not own the descriptor."""
        raise TypeError(f"{self.path} is open here: open the checkpoint again where it is needed")

    def stream(self) -> "BoundedReader":
        """Return the content from its beginning, for parsers; for one thread."""
        return BoundedReader(self._descriptor, self.size)

    def read(self, begin: int, count: int) -> bytes:
        """At most `count` bytes from byte `begin`, fewer only where the file ends."""
        return os.pread(self._descriptor, max(0, min(count, self.size - begin)), begin)

    def fill(self, out: Tensor, begin: int, dtype: torch.dtype) -> None:
        """Fill `out` ([n], contiguous) with the n elements of `dtype` from byte `begin` on.

        Where dtype and device agree, the bytes go into the memory of `out` and nowhere else;
        otherwise they are converted in blocks.

        Raises:
            OSError: The disk does not give them.
            EOFError: The file is shorter than it was.
        """
        if out.dtype == dtype and out.device.type == "cpu":
            self._fill(flat_bytes(out), begin)
            if dtype == torch.bool:
                out.view(torch.uint8).clamp_(max=1)  # other bytes are no truth values to torch
            return
        block = torch.empty(min(BLOCK, out.numel()), dtype=dtype)
        for part in out.split(BLOCK):
            self.fill(block[: part.numel()], begin, dtype)
            part.copy_(block[: part.numel()])
            begin += part.numel() * dtype.itemsize

    def _fill(self, memory: memoryview, begin: int) -> None:
        while memory:
            count = os.preadv(self._descriptor, [memory], begin)
            if not count:
                raise EOFError("the file ends early: it was cut while in use")
            memory, begin = memory[count:], begin + count

    def check_unchanged(self) -> None:
        """Check that the path still leads to this file, and this file is as it was.

        Raises:
            InputError: It was changed, replaced or removed since it was opened.
        """
        try:
            unchanged = _stamp(os.stat(self._place)) == self._stamp
        except OSError:
            unchanged = False
        if not unchanged:
            raise InputError(
                f"{self.path} changed while it was in use: run again when nothing writes to it"
            )


def _open(path: str | Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # pipes would block
    except FileNotFoundError:
        if link := dangling(path):
            raise InputError(
                f"is {link}: copy or download it again; in a cache of the Hub, the download was "
                "not finished"
            ) from None
        raise


def dangling(path: str | Path) -> str:
    """Return what to call a link that leads nowhere; nothing for any other path."""
    if os.path.islink(path) and not os.path.exists(path):
        return f"a link to {os.readlink(path)}, which does not exist"
    return ""


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class BoundedReader(BufferedReader):
    """Bytes of a file for parsers, which may ask for more than a damaged file has.

    What a length field claims is cut to what is left before memory is taken for it.
    """

    _SMALL = 4096

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__(FileIO(descriptor, closefd=False))
        self.seek(0)
        self._size = size

    def read(self, count: int | None = -1) -> bytes:
        """At most `count` bytes, all that is left if it is negative or None."""
        if count is None or not 0 <= count <= self._SMALL:
            left = max(0, self._size - self.tell())
            count = left if count is None or count < 0 else min(count, left)
        return super().read(count)


@contextmanager
def reading(subject: str | Path) -> Iterator[None]:
    """Turn whatever goes wrong while `subject`, a file, is read into one InputError about it."""
    try:
        yield
    except FileNotFoundError as fault:
        raise InputError(f"{subject} does not exist: check the path") from fault
    except InputError as fault:
        raise InputError(f"{subject} {fault}") from fault
    except OSError as fault:
        raise InputError(f"{subject} cannot be read: {fault.strerror or fault}") from fault
    except Exception as fault:  # a damaged file can break any step of reading it
        raise InputError(
            f"{subject} is truncated or damaged, or no checkpoint: copy or download it again "
            f"({type(fault).__name__}: {str(fault)[:200]})"
        ) from fault
