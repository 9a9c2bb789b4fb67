"""Files that are either complete or absent."""

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_merge.core.errors import InputError


@contextmanager
def atomic_write(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    The temporary file lies in the same folder under a hidden name with the same suffix (so
    that writers which choose a format by suffix work). It is flushed to the disk before the
    rename and the folder after it: whatever happens, `path` holds its old content or all of
    the new one. An exception in the block, Ctrl-C included, removes the temporary file.
    Missing parent folders are made.

    Examples:
        >>> with atomic_write(folder / "map.png") as temporary:  # doctest: +SKIP
        ...     figure.savefig(temporary)

    Raises:
        InputError: `path` exists and `overwrite` is false, is a folder, or cannot be written.
    """
    path = Path(path)
    temporary = claim(path, overwrite=overwrite)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    flush(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write a text as it is, whole or not at all, in UTF-8 whatever the locale.

    Names of files whose bytes are not UTF-8 keep those bytes (surrogateescape).

    Raises:
        InputError: See `atomic_write`.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def read_text(path: str | Path) -> str:
    """Return what `write_text` wrote, or any text in UTF-8; line ends become newlines.

    Raises:
        OSError: The file is missing or unreadable.
    """
    return Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")


def claim(path: Path, *, overwrite: bool = True) -> Path:
    """Return an empty new file beside `path` under a hidden name that `remove_leftovers` knows.

    Raises:
        InputError: See `atomic_write`.
    """
    if os.path.isdir(path):  # unlike Path.is_dir, takes names that are too long
        raise InputError(f"{path} is a folder: give the path of a file in it")
    if not overwrite and os.path.lexists(path):
        raise InputError(f"{path} exists: give another path, or allow it to be overwritten")
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    return temporary


class PendingFile:
    """A file that is written by position under a hidden name, and then takes its place.

    As long as it is open it is locked, which tells it from what a killed process left behind.

    Attributes:
        path: The place.

    Raises:
        InputError: See `atomic_write`.
    """

    def __init__(self, path: Path, *, overwrite: bool = True) -> None:
        self.path = path
        self._temporary = claim(path, overwrite=overwrite)
        with _writing(path):
            self._descriptor = os.open(self._temporary, os.O_RDWR)
            with suppress(OSError):  # some network disks know no locks
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def reserve(self, size: int) -> None:
        """Take `size` bytes of the disk now, so that it cannot be full later.

        Raises:
            InputError: The disk, quota or limit on files has less.
        """
        with _writing(self.path, f" ({size / 1e9:.3f} GB are needed)"):
            disk = os.fstatvfs(self._descriptor)
            if disk.f_blocks and disk.f_bavail * disk.f_frsize < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            try:
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    os.posix_fallocate(self._descriptor, 0, size)
            except OSError as fault:
                if fault.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # not on this disk
                    raise

    def write(self, begin: int, content: memoryview | bytes) -> None:
        """Put bytes at byte `begin`; from several threads, if need be.

        Raises:
            InputError: The disk does not take them.
        """
        content = memoryview(content)
        with _writing(self.path):
            while content:
                count = os.pwrite(self._descriptor, content, begin)
                content, begin = content[count:], begin + count

    def flush(self) -> None:
        """Force what was written onto the disk.

        Raises:
            InputError: The disk fails.
        """
        with _writing(self.path):
            os.fsync(self._descriptor)

    def replace(self) -> None:
        """Take the place of the file at `path`, if there is one, in one step."""
        with _writing(self.path):
            os.replace(self._temporary, self.path)

    def close(self) -> None:
        """Close the file, and remove it if it did not take its place."""
        os.close(self._descriptor)
        self._temporary.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path, hint: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise InputError(
            f"{path} cannot be written{hint}: {fault.strerror or fault}. Make room or give "
            "another path"
        ) from fault


def remove_leftovers(folder: Path, pattern: str, keep: Iterable[str] = ()) -> None:
    """Remove what killed processes left in a folder, as far as it can be removed.

    Args:
        folder: Where to look.
        pattern: Regular expression of the names that go, unless a `PendingFile` has them open.
        keep: Names that stay.
    """
    name = re.compile(pattern)
    with suppress(OSError):
        for file in folder.iterdir():
            if name.fullmatch(file.name) and file.name not in keep and not _is_locked(file):
                with suppress(OSError):
                    file.unlink()


def _is_locked(file: Path) -> bool:
    """Whether a `PendingFile` is open for it in any process."""
    with file.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def flush(path: Path) -> None:
    """Force a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
