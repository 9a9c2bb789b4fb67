"""Files that are read during a merge: by position, by several threads, and checked for changes.

They are read, not mapped into memory. If a file is truncated, access to a map raises SIGBUS, which
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

    It is read rather than mapped, so a page that the disk cannot deliver, or that was cut off in
    the meantime, is an error and not the end of the process. The file is closed when nothing
    refers to it any more.

    Args:
        path: The file.

    Attributes:
        path: The file, as given.
        size: Bytes.

    Raises:
        OSError: The file cannot be opened.
        InputError: It is empty or not a regular file; `reading` adds the path to the message.

    Examples:
        >>> _ = Path("letters.bin").write_bytes(b"abcdef")
        >>> SourceFile("letters.bin").read(2, 3)
        b'cde'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._place = os.path.abspath(path)
        self._descriptor = _open(path)
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError("is not a regular file: give the path of a checkpoint")
        if not status.st_size:
            raise InputError("is empty: copy or download it again")
        self.size = status.st_size
        self._stamp = _stamp(status)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: a copy, or another process, would not own the descriptor."""
        raise TypeError(f"{self.path} is open here: open the checkpoint again where it is needed")

    def stream(self) -> BufferedReader:
        """Return a reader for parsers, from the beginning of the file; for one thread."""
        return _BoundedReader(self._descriptor, self.size)

    def read(self, begin: int, count: int) -> bytes:
        """Return `count` bytes from byte `begin` on, fewer only at the end of the file."""
        return os.pread(self._descriptor, max(0, min(count, self.size - begin)), begin)

    def fill(self, out: Tensor, begin: int, dtype: torch.dtype) -> None:
        """Fill `out` ([n], contiguous) with the n elements of `dtype` from byte `begin` on.

        If dtype and device agree, the bytes go straight into the memory of `out`; otherwise they
        are converted in blocks.

        Raises:
            OSError: The disk fails.
            EOFError: The file has become shorter.
        """
        if out.dtype == dtype and out.device.type == "cpu":
            self._fill(flat_bytes(out), begin)
            if dtype == torch.bool:
                out.view(torch.uint8).clamp_(max=1)  # torch accepts only 0 and 1 as booleans
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
        """Check that the path still leads to this file and that the file is unchanged.

        Raises:
            InputError: It was changed, replaced or removed since it was opened.
        """
        try:
            unchanged = _stamp(os.stat(self._place)) == self._stamp
        except OSError:
            unchanged = False
        if not unchanged:
            raise InputError(
                f"{self.path} changed while it was in use: run again once nothing writes to it"
            )


def _open(path: str | Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # pipes would block
    except FileNotFoundError:
        if link := broken_link(path):
            raise InputError(
                f"is {link}: copy or download it again; in a cache of the Hub, the download was "
                "not finished"
            ) from None
        raise


def broken_link(path: str | Path) -> str:
    """Describe a link whose target does not exist; empty for any other path.

    Args:
        path: The possible link.

    Examples:
        >>> os.symlink("missing.pt", "link.pt")
        >>> broken_link("link.pt")
        'a link to missing.pt, which does not exist'
    """
    if os.path.islink(path) and not os.path.exists(path):
        return f"a link to {os.readlink(path)}, which does not exist"
    return ""


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class _BoundedReader(BufferedReader):
    """A reader for parsers, which may ask for more bytes than a damaged file has.

    A length field is limited to the bytes that remain before memory is allocated for it.
    """

    _SMALL = 4096

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__(FileIO(descriptor, closefd=False))
        self.seek(0)
        self._size = size

    def read(self, count: int | None = -1) -> bytes:
        """Return at most `count` bytes, or all remaining ones if it is negative or None."""
        if count is None or not 0 <= count <= self._SMALL:
            left = max(0, self._size - self.tell())
            count = left if count is None or count < 0 else min(count, left)
        return super().read(count)


@contextmanager
def reading(subject: str | Path) -> Iterator[None]:
    """Turn anything that goes wrong while a file is read into one InputError that names it.

    Args:
        subject: The file, with which the message begins.

    Examples:
        >>> with reading("expert.pt"):
        ...     raise ValueError("a storage is larger than its record")
        Traceback (most recent call last):
        lightning_merge.core.errors.InputError: expert.pt is truncated or damaged, or not a ...
    """
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
            f"{subject} is truncated or damaged, or not a checkpoint: copy or download it again "
            f"({type(fault).__name__}: {str(fault)[:200]})"
        ) from fault
