"""Files that are either whole or absent, and what identifies their content."""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Literal

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.errors import InputError

_HEAD, _BLOCK, _BLOCKS = 1 << 20, 1 << 14, 64  # what a fingerprint looks at


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


def snapshot(folder: Path) -> Path:
    """Return the folder of files that a folder of the Hub's cache stands for; any other as it is.

    Raises:
        InputError: The cache has none of it, or several to choose from.
    """
    if folder.name.startswith("models--") and not (folder / "config.json").exists():
        folder = folder / "snapshots"
    if folder.name != "snapshots":
        return folder
    snapshots = sorted(f for f in folder.iterdir() if f.is_dir()) if folder.is_dir() else []
    if len(snapshots) != 1:
        choices = ", ".join(f.name for f in snapshots[:5])
        raise InputError(
            f"{folder} holds several snapshots: {choices}. Give the path of one"
            if snapshots
            else f"{folder} holds no snapshot: the download was not finished; run it again"
        )
    return snapshots[0]


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file in hexadecimal, as `sha256sum` prints it.

    For a folder it is the hash over the sorted names and hashes of its files, and for an index of
    shards over those of the shards and its own; for a repository of the Hub over those of its
    files that are used here. A file is read once per process as long as its size and time of
    change stay.

    Raises:
        InputError: `path` is missing or unreadable.
    """
    return _hash(path, _content_hash)


def file_fingerprint(path: str | Path) -> str:
    """SHA-256, in hexadecimal, of a file's size and of a sample of its content.

    The first MiB, which has the names and shapes of a checkpoint, and 65 blocks of 16 KiB from
    there to the end: 2 MiB are read, however large the file is. It tells which file a result
    came from. It does not show that two files are equal; where work is skipped because a file
    is the same, or where someone might forge it, take `file_hash`.

    For a folder, or an index of shards, it is the hash over names and fingerprints, see
    `file_hash`.

    Raises:
        InputError: `path` is missing or unreadable.
    """
    return _hash(path, _sample_hash)


def file_record(path: str | Path, kind: Literal["sha256", "sample"]) -> str:
    """Return what a result says of a file that it was made from, as `sha256:9f86...`.

    Args:
        path: The file or folder.
        kind: "sha256" for the `file_hash`, "sample" for the `file_fingerprint`.

    Raises:
        InputError: `path` is missing or unreadable.
    """
    return f"{kind}:{_DIGESTS[kind](path)}"


def is_recorded(path: str | Path, record: str) -> bool:
    """Whether a file is the one of a record, of either kind.

    Earlier versions recorded the digest alone; such a record may be of either kind as well.

    Raises:
        InputError: `path` is missing or unreadable.
    """
    kind, colon, digest = record.rpartition(":")
    kinds = [kind] if colon else list(_DIGESTS)
    return any(_DIGESTS[k](path) == digest for k in kinds if k in _DIGESTS)


_DIGESTS: dict[str, Callable[[str | Path], str]] = {
    "sha256": file_hash,
    "sample": file_fingerprint,
}


def _hash(given: str | Path, hash_file: Callable[[Path, int, int, int], str]) -> str:
    path = hub.local(given)
    try:
        if path.is_dir():
            folder = snapshot(path)
            files = hub.files(given) or [f for f in folder.iterdir() if f.is_file()]
            files = [f for f in files if not f.name.startswith(".")]
            inner = {shard for file in files for shard in _shards(file) if "/" in shard}
            names = sorted({file.name for file in files} | inner)
            return _joined({name: _hash_of(folder / name, hash_file) for name in names})
        shards = sorted({path.name, *_shards(path)})
        if len(shards) > 1:
            return _joined({name: _hash_of(path.parent / name, hash_file) for name in shards})
        return _hash_of(path, hash_file)
    except OSError as fault:
        raise InputError(f"{path} cannot be read: {fault.strerror or fault}") from fault


def _hash_of(path: Path, hash_file: Callable[[Path, int, int, int], str]) -> str:
    status = path.stat()
    return hash_file(path.resolve(), status.st_ino, status.st_mtime_ns, status.st_size)


def _joined(hashes: dict[str, str]) -> str:
    lines = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _shards(index: Path) -> set[str]:
    """Return the files that an index of shards names; none of any other file."""
    if not index.name.endswith(".index.json"):
        return set()
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return {name for name in named if (index.parent / name).is_file()}
    except (ValueError, AttributeError, KeyError, TypeError):
        return set()  # whoever reads it tells what is wrong


@lru_cache(maxsize=1024)
def _content_hash(path: Path, inode: int, changed: int, size: int) -> str:
    digest = hashlib.sha256()
    block = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def _sample_hash(path: Path, inode: int, changed: int, size: int) -> str:
    digest = hashlib.sha256(f"{size}\n".encode())
    with path.open("rb", buffering=0) as file:
        digest.update(file.read(_HEAD))
        room = max(0, size - _HEAD - _BLOCK)
        for index in range(_BLOCKS + 1):
            file.seek(_HEAD + room * index // _BLOCKS)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()
