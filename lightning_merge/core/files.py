"""Files that are either whole or absent, and what identifies their content."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
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

    Example:
        >>> with atomic_write(folder / "results.json") as temporary:  # doctest: +SKIP
        ...     temporary.write_text(text)

    Raises:
        InputError: `path` exists and `overwrite` is false, is a folder, or cannot be written.
    """
    path = Path(path)
    if os.path.isdir(path):  # unlike Path.is_dir, takes names that are too long
        raise InputError(f"{path} is a folder: give the path of a file in it")
    if not overwrite and os.path.lexists(path):
        raise InputError(f"{path} exists: give another path, or allow it to be overwritten")
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as fault:
        raise InputError(f"{path} cannot be written: {fault.strerror or fault}") from fault
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Force a file, or the names in a folder where the system allows it, onto the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file in hexadecimal, as `sha256sum` prints it.

    For a folder it is the hash over the sorted names and hashes of its files. A file is read
    once per process as long as its size and time of change stay.

    Raises:
        InputError: `path` is missing or unreadable.
    """
    path = Path(path)
    try:
        if path.is_dir():
            files = sorted(f for f in path.iterdir() if f.is_file() and not f.name.startswith("."))
            lines = "".join(f"{file_hash(file)}  {file.name}\n" for file in files)
            return hashlib.sha256(lines.encode()).hexdigest()
        status = path.stat()
        return _content_hash(path.resolve(), status.st_ino, status.st_mtime_ns, status.st_size)
    except OSError as fault:
        raise InputError(f"{path} cannot be read: {fault.strerror or fault}") from fault


@lru_cache(maxsize=1024)
def _content_hash(path: Path, inode: int, changed: int, size: int) -> str:
    digest = hashlib.sha256()
    block = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()
