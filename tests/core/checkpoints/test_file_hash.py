import os

import pytest

from lightning_merge.core.checkpoints.checkpoint import (
    file_hash,
)
from lightning_merge.core.checkpoints.digests import file_fingerprint
from lightning_merge.core.checkpoints.files import atomic_write
from lightning_merge.core.errors import InputError


def test_file_hash(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_hash(path) == wanted
    folder = file_hash(tmp_path)
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"abd")
    assert file_hash(path) != wanted
    assert file_hash(tmp_path) != folder
    with pytest.raises(InputError, match="missing"):
        file_hash(tmp_path / "missing")


def test_file_fingerprint(tmp_path):
    path, size, head = tmp_path / "x", 1 << 23, 1 << 20
    content = bytearray(os.urandom(size))

    def fingerprint():
        path.write_bytes(content)
        return file_fingerprint(path)

    first, folder = fingerprint(), file_fingerprint(tmp_path)
    assert first == file_fingerprint(path) != file_hash(path)
    for position in (0, head - 1, head, head + (size - head - (1 << 14)) // 2, size - 1):
        content[position] ^= 1
        assert fingerprint() != first
        assert file_fingerprint(tmp_path) != folder
        content[position] ^= 1
        assert fingerprint() == first
    for size in (0, 1, 1 << 14, head, head + 1, head + (1 << 20)):  # small ones are read whole
        content = bytearray(size)
        first = fingerprint()
        for position in {0, size // 2, size * 7 // 8, size - 1} if size else ():
            content[position] = 1
            assert fingerprint() != first
            content[position] = 0
        content.append(0)
        assert fingerprint() != first
    with pytest.raises(InputError, match="missing"):
        file_fingerprint(tmp_path / "missing")
