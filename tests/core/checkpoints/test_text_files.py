"""Text files: UTF-8 with the bytes of odd names, whatever the locale, whole or not at all."""

import os
import subprocess
import sys

import pytest

from lightning_merge.core.checkpoints.digests import file_fingerprint, file_hash
from lightning_merge.core.checkpoints.files import read_text, write_text
from lightning_merge.core.errors import InputError
from lightning_merge.core.seeding import generator_for

NAMES = [
    b"plain",
    "café 🍎".encode(),
    b"caf\xe9",  # Latin-1
    b"\x8a\xbf\x8e\x9a",  # Shift-JIS
    b'a,"b"\nc',
    b"half \xed\xa0\x80 of a pair",
]


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_names_are_kept(tmp_path, name):
    text = os.fsdecode(name)
    write_text(tmp_path / "deep" / "file.txt", text)
    assert (tmp_path / "deep" / "file.txt").read_bytes() == name
    assert read_text(tmp_path / "deep" / "file.txt") == text


def test_line_ends_are_written_as_given_and_read_as_one(tmp_path):
    write_text(tmp_path / "a", "x\r\ny\nz")
    assert (tmp_path / "a").read_bytes() == b"x\r\ny\nz"
    assert read_text(tmp_path / "a") == "x\ny\nz"
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf{}")  # as Windows begins a file
    assert read_text(tmp_path / "marked") == "{}"


def test_nothing_half_written_stays(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "new \ud800")  # no name of a file
    assert read_text(tmp_path / "a") == "old"
    assert os.listdir(tmp_path) == ["a"]
    with pytest.raises(InputError, match="is a folder"):
        write_text(tmp_path, "x")


@pytest.mark.parametrize("name", [name for name in NAMES if b"/" not in name])
def test_a_folder_of_odd_names_has_a_hash(tmp_path, name):
    for folder, content in {"one": "1", "same": "1", "other": "2"}.items():
        write_text(tmp_path / folder / os.fsdecode(name), content)
    for digest in (file_hash, file_fingerprint):
        one, same, other = (digest(tmp_path / folder) for folder in ("one", "same", "other"))
        assert one == same != other


def test_random_numbers_of_odd_names():
    first, again, other = (
        generator_for(0, os.fsdecode(name)).initial_seed()
        for name in (b"caf\xe9", b"caf\xe9", b"caf\xe8")
    )
    assert first == again != other


LOCALES = [
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("locale", LOCALES)
def test_the_locale_changes_nothing(tmp_path, locale):
    code = (
        "import sys; from pathlib import Path\n"
        "from lightning_merge.core.checkpoints.files import read_text, write_text\n"
        "write_text(Path(sys.argv[1], 'a'), 'caf\\u00e9 \\U0001f34e')\n"
        "print(ascii(read_text(Path(sys.argv[1], 'a'))))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, **locale}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.stdout.strip() == r"'caf\xe9 \U0001f34e'"
    assert (tmp_path / "a").read_bytes() == "café 🍎".encode()
