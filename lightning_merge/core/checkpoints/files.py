"""Files that appear completely or not at all."""

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_merge.core.errors import InputError, warn


@contextmanager
def atomic_write(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block succeeds.

    The temporary file lies in the same folder under a hidden name with the same suffix, because
    some writers choose the format by suffix. It is flushed to disk before the rename and the
    folder after it: whatever happens, `path` holds its old content or all of the new content. An
    exception in the block, including Ctrl-C, removes the temporary file. Missing parent folders
    are created.

    Args:
        path: The file to write.
        overwrite: Whether an existing file may be replaced.

    Raises:
        InputError: `path` is a folder, cannot be written, or exists and must not be overwritten.

    Examples:
        >>> with atomic_write("report.txt") as temporary:
        ...     _ = temporary.write_text("complete")
        >>> Path("report.txt").read_text()
        'complete'
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


@contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block succeeds.

    An exception in the block, including Ctrl-C, removes it and leaves `path` as it was.

    Args:
        path: The folder to write.
        overwrite: Whether an existing folder may be replaced.

    Raises:
        InputError: `path` is a file, cannot be written, or exists and must not be overwritten.

    Examples:
        >>> with atomic_folder("network") as temporary:
        ...     _ = (temporary / "config.json").write_text("{}")
        >>> [file.name for file in Path("network").iterdir()]
        ['config.json']
    """
    path = Path(os.path.abspath(path))
    if path.is_file():
        raise InputError(f"{path} is a file: give the path of a folder")
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{path} exists: give another path or allow overwriting")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    before = temporary.with_suffix(".old")
    try:
        with _writing(path):
            temporary.mkdir(parents=True)
        yield temporary
        with _writing(path):
            for file in (*temporary.iterdir(), temporary):
                flush(file)
            if path.exists():
                os.replace(path, before)
            os.replace(temporary, path)
            flush(path.parent)
    except BaseException:
        if before.exists() and not path.exists():
            os.replace(before, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


@contextmanager
def locked(path: str | Path) -> Iterator[int]:
    """Let one process at a time make a file; others wait.

    The lock is on a hidden file beside it, which stays. A disk without locks has none.

    Args:
        path: The file. Missing parent folders are created.

    Yields:
        Descriptor of the lock: a process that inherits it holds the lock until it ends.

    Raises:
        InputError: The folder cannot be written.

    Examples:
        >>> with locked("heads.txt"):
        ...     write_text("heads.txt", "made once")
        >>> sorted(file.name for file in Path().glob("*heads*"))
        ['.heads.txt.lock', 'heads.txt']
    """
    path = Path(path)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            warn(f"{path} is being made by another process; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # some network disks do not support locks
            pass
        yield descriptor
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Write text unchanged and atomically, in UTF-8 whatever the locale.

    File names in the text whose bytes are not UTF-8 keep those bytes (surrogateescape).

    Args:
        path: The file to write.
        text: Its content.

    Raises:
        InputError: See `atomic_write`.

    Examples:
        >>> write_text("note.txt", "2 × 3")
        >>> read_text("note.txt")
        '2 × 3'
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def read_text(path: str | Path) -> str:
    r"""Return the text of a UTF-8 file, with line ends as newlines; the inverse of `write_text`.

    Raises:
        OSError: The file is missing or unreadable.

    Examples:
        >>> _ = Path("note.txt").write_bytes(b"one\r\ntwo")
        >>> read_text("note.txt").splitlines()
        ['one', 'two']
    """
    return Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")


def claim(path: Path, *, overwrite: bool = True) -> Path:
    """Create an empty file beside `path`, under a hidden name that `remove_leftovers` recognises.

    Args:
        path: The file that will be written.
        overwrite: Whether it may be replaced if it exists.

    Returns:
        The path of the empty file.

    Raises:
        InputError: See `atomic_write`.

    Examples:
        >>> claim(Path("merged.pt")).name
        '.merged...tmp.pt'
    """
    if os.path.isdir(path):  # unlike Path.is_dir, accepts names that are too long
        raise InputError(f"{path} is a folder: give the path of a file in it")
    if not overwrite and os.path.lexists(path):
        raise InputError(f"{path} exists: give another path or allow overwriting")
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    return temporary


class PendingFile:
    """A file that is written by position under a hidden name and then moved to its path.

    It is locked while it is open, which distinguishes it from the leftovers of a killed process.

    Args:
        path: The final path.
        overwrite: Whether an existing file may be replaced.

    Attributes:
        path: The final path.

    Raises:
        InputError: See `atomic_write`.

    Examples:
        >>> file = PendingFile(Path("numbers.bin"))
        >>> file.write(2, b"cd")
        >>> file.write(0, b"ab")
        >>> file.replace()
        >>> file.close()
        >>> Path("numbers.bin").read_bytes()
        b'abcd'
    """

    def __init__(self, path: Path, *, overwrite: bool = True) -> None:
        self.path = path
        self._temporary = claim(path, overwrite=overwrite)
        with _writing(path):
            self._descriptor = os.open(self._temporary, os.O_RDWR)
            with suppress(OSError):  # some network disks do not support locks
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def reserve(self, size: int) -> None:
        """Allocate `size` bytes on disk now, so that the disk cannot be full later.

        Raises:
            InputError: The disk, quota or file size limit does not allow it.
        """
        with _writing(self.path, f" ({size / 1e9:.3f} GB are needed)"):
            disk = os.fstatvfs(self._descriptor)
            if disk.f_blocks and disk.f_bavail * disk.f_frsize < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            try:
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    os.posix_fallocate(self._descriptor, 0, size)
            except OSError as fault:
                if fault.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # unsupported by this disk
                    raise

    def write(self, begin: int, content: memoryview | bytes) -> None:
        """Write bytes at byte `begin`; several threads may write at once.

        Raises:
            InputError: The write fails.
        """
        content = memoryview(content)
        with _writing(self.path):
            while content:
                count = os.pwrite(self._descriptor, content, begin)
                content, begin = content[count:], begin + count

    def flush(self) -> None:
        """Force all written bytes to disk.

        Raises:
            InputError: The disk fails.
        """
        with _writing(self.path):
            os.fsync(self._descriptor)

    def replace(self) -> None:
        """Move the file to `path` in one step, replacing any file there."""
        with _writing(self.path):
            os.replace(self._temporary, self.path)

    def close(self) -> None:
        """Close the file, and remove it unless it was moved to its path."""
        os.close(self._descriptor)
        self._temporary.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path, hint: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise InputError(
            f"{path} cannot be written{hint}: {fault.strerror or fault}. Free some space or give "
            "another path"
        ) from fault


def remove_leftovers(folder: Path, pattern: str, keep: Iterable[str] = ()) -> None:
    r"""Remove files that killed processes left in a folder, as far as possible.

    Args:
        folder: Where to look.
        pattern: Regular expression of the names to remove, unless a `PendingFile` has them open.
        keep: Names to keep.

    Examples:
        >>> Path(".killed.tmp").touch()
        >>> remove_leftovers(Path("."), r"\.\w+\.tmp")
        >>> Path(".killed.tmp").exists()
        False
    """
    name = re.compile(pattern)
    with suppress(OSError):
        for file in folder.iterdir():
            if name.fullmatch(file.name) and file.name not in keep and not _is_locked(file):
                with suppress(OSError):
                    file.unlink()


def _is_locked(file: Path) -> bool:
    """Whether a `PendingFile` has it open in any process."""
    with file.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def flush(path: Path) -> None:
    """Force a file, or the names in a folder, to disk.

    Examples:
        >>> _ = Path("note.txt").write_text("kept after a power cut")
        >>> flush(Path("note.txt"))
        >>> flush(Path("."))
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
