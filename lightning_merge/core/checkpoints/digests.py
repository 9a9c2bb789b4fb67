"""Digests that identify the content of files and folders."""

import hashlib
import json
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.errors import InputError

_HEAD, _BLOCK, _BLOCKS = 1 << 20, 1 << 14, 64  # bytes and blocks that a fingerprint samples


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, as `sha256sum` prints it.

    For a folder it is the hash of the sorted names and hashes of its files, for an index of shards
    that of the shards and the index, and for a Hub repository that of the files used here. A file
    is read once per process while its size and modification time stay the same.

    Raises:
        InputError: `path` is missing or unreadable.

    Examples:
        >>> _ = Path("note.txt").write_text("hello")
        >>> file_hash("note.txt")
        '2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824'
    """
    return _hash(path, _content_hash)


def file_fingerprint(path: str | Path) -> str:
    """Return the SHA-256, in hexadecimal, of a file's size and a sample of its content.

    The sample is the first MiB, which includes the names and shapes of a checkpoint, and 65 blocks
    of 16 KiB spread evenly to the end: 2 MiB, however large the file is. It identifies the file
    that a result came from. It does not prove that two files are equal; use `file_hash` to skip
    work on an unchanged file, or if someone might forge one.

    For a folder or an index of shards it is the hash of names and fingerprints, see `file_hash`.

    Raises:
        InputError: `path` is missing or unreadable.

    Examples:
        >>> _ = Path("one.bin").write_bytes(bytes(10)), Path("two.bin").write_bytes(bytes(11))
        >>> file_fingerprint("one.bin") == file_fingerprint("two.bin")
        False
    """
    return _hash(path, _sample_hash)


def file_record(path: str | Path, kind: Literal["sha256", "sample"]) -> str:
    """Return the record that identifies a source file in a result, such as `sha256:9f86...`.

    Args:
        path: The file or folder.
        kind: "sha256" for the `file_hash`, "sample" for the `file_fingerprint`.

    Raises:
        InputError: `path` is missing or unreadable.

    Examples:
        >>> _ = Path("note.txt").write_text("hello")
        >>> file_record("note.txt", "sha256")
        'sha256:2cf24dba...'
    """
    return f"{kind}:{_DIGESTS[kind](path)}"


def is_recorded(path: str | Path, record: str) -> bool:
    """Whether a file matches a record of either kind.

    Earlier versions recorded the bare digest, which may be of either kind.

    Args:
        path: The file or folder.
        record: As `file_record` returns it.

    Raises:
        InputError: `path` is missing or unreadable.

    Examples:
        >>> _ = Path("note.txt").write_text("hello")
        >>> record = file_record("note.txt", "sample")
        >>> _ = Path("note.txt").write_text("changed")
        >>> is_recorded("note.txt", record)
        False
    """
    kind, colon, digest = record.rpartition(":")
    kinds = [kind] if colon else list(_DIGESTS)
    return any(_DIGESTS[k](path) == digest for k in kinds if k in _DIGESTS)


_DIGESTS: dict[str, Callable[[str | Path], str]] = {
    "sha256": file_hash,
    "sample": file_fingerprint,
}


def code_of(*things: object) -> dict[str, str]:
    """Return the hashes of the files that define the classes of some objects, by module.

    Classes of this package and of Lightning are left out: the package's version tells of them.

    Examples:
        >>> from lightning_merge.methods import Ties
        >>> code_of(Ties())  # of this package
        {}
    """
    return {n: h for thing in things for n, h in code_of_module(type(thing).__module__).items()}


def code_of_module(module: str) -> dict[str, str]:
    """Return the hash of the file of an imported module, by name, if it is a user's own.

    Examples:
        >>> sorted(code_of_module("string"))
        ['code of string']
        >>> code_of_module("lightning_merge.methods.ties")
        {}
    """
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or module.partition(".")[0] in ("lightning_merge", "lightning"):
        return {}
    return {f"code of {module}": file_hash(file)}


def _hash(given: str | Path, hash_file: Callable[[Path, int, int, int], str]) -> str:
    path = hub.local(given)
    try:
        if path.is_dir():
            folder = hub.snapshot(path)
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
    """Return the files that an index of shards names; empty for any other file."""
    if not index.name.endswith(".index.json"):
        return set()
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return {name for name in named if (index.parent / name).is_file()}
    except (ValueError, AttributeError, KeyError, TypeError):
        return set()  # reported when the index is opened


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
