"""Rows of tables, JSON lines and text files, in full or not at all."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_merge.core.errors import InputError
from lightning_merge.data.text.layouts import TableLayout

TABLES = (".tsv", ".csv", ".jsonl")
"""Suffixes of files with several columns; all others have one text a line."""


def read_text(path: Path, encoding: str = "utf-8-sig") -> str:
    """Return the text of a file.

    Raises:
        InputError: The file is missing, empty, or has another encoding.

    Examples:
        >>> _ = Path("a.txt").write_bytes("café".encode("latin-1"))
        >>> read_text(Path("a.txt"))
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: a.txt is not UTF-8 (byte 3 is 0xe9); convert it: ...
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as fault:
        name = "UTF-8" if encoding.startswith("utf-8") else encoding
        raise InputError(
            f"{path} is not {name} (byte {fault.start} is 0x{content[fault.start]:02x}); convert "
            f"it: iconv -f ENCODING -t UTF-8 {path.name}"
        ) from None
    if not text.strip():
        raise InputError(f"{path} is empty; fill it, or leave the task out")
    return text


def read_rows(path: Path, layout: TableLayout) -> Iterator[dict[str, str]]:
    r"""Yield the examples of a file by column; `file` is its name.

    Args:
        path: A table (.tsv without quotes, .csv, .jsonl) or a file with one text a line.
        layout: Names of columns, pattern and encoding.

    Raises:
        InputError: The file cannot be read, or part of it is not an example.

    Examples:
        >>> _ = Path("a.tsv").write_text("text\tlabel\na joy\tgood\n")
        >>> list(read_rows(Path("a.tsv"), TableLayout()))
        [{'file': 'a.tsv', 'text': 'a joy', 'label': 'good'}]
    """
    text, kind = read_text(path, layout.encoding), layout.kind or path.suffix
    if layout.pattern:
        rows = _matches(path, text, layout.pattern)
    elif kind == ".jsonl":
        rows = _json_lines(path, text)
    else:
        columns = layout.columns or (() if kind in TABLES else ("text",))
        rows = _table(path, _cells(kind, text), columns)
    for row in rows:
        yield {"file": path.name, **row}


def read_side_by_side(
    paths: Sequence[Path], columns: Sequence[str], encoding: str
) -> Iterator[dict[str, str]]:
    r"""Yield examples whose columns are in files of their own, line by line.

    Raises:
        InputError: The files have different numbers of lines.

    Examples:
        >>> _ = Path("texts").write_text("a joy\na bore\n"), Path("labels").write_text("1\n0\n")
        >>> list(read_side_by_side([Path("texts"), Path("labels")], ("text", "label"), "utf-8"))
        [{'text': 'a joy', 'label': '1'}, {'text': 'a bore', 'label': '0'}]
    """
    lines = [_lines(read_text(path, encoding)) for path in paths]
    if len({*map(len, lines)}) > 1:
        counts = ", ".join(f"{p.name}: {len(own)}" for p, own in zip(paths, lines, strict=True))
        raise InputError(f"{paths[0].parent}: files differ in their number of lines ({counts})")
    for values in zip(*lines, strict=True):
        yield dict(zip(columns, values, strict=True))


def _lines(text: str) -> list[str]:
    """Return the lines of a text without the empty ones at its end; only line feeds end lines."""
    return [line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")]


def _cells(kind: str, text: str) -> list[list[str]]:
    """Return the cells of every line that is not empty."""
    if kind == ".csv":
        csv.field_size_limit(1 << 30)  # a cell may be a book
        return [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    lines = [line for line in _lines(text) if line.strip()]
    return [line.split("\t") if kind == ".tsv" else [line] for line in lines]


def _table(path: Path, cells: list[list[str]], columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield rows by column; the first line names the columns if they are not given."""
    names, *rows = [columns, *cells] if columns else cells
    for number, row in enumerate(rows, start=1 if columns else 2):
        if len(row) != len(names):
            raise InputError(
                f"{path}: row {number} has {len(row)} columns, and there should be {len(names)} "
                f"({', '.join(names)}); mend it"
            )
        yield dict(zip(names, row, strict=True))


def _json_lines(path: Path, text: str) -> Iterator[dict[str, str]]:
    for number, line in enumerate(_lines(text), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as fault:
            raise InputError(f"{path}: line {number} is not JSON ({fault}); mend it") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}: line {number} is not an object with columns; mend it")
        yield plain(record)


def plain(record: Any, name: str = "") -> dict[str, str]:
    """Return the texts in a nested record by column; `a.0` is the first entry of a list `a`.

    Args:
        record: Mapping, list or value.
        name: Name of the column that has it.

    Examples:
        >>> plain({"question": "Why?", "choices": {"text": ["so", "not"]}, "label": 1})
        {'question': 'Why?', 'choices.text.0': 'so', 'choices.text.1': 'not', 'label': '1'}
    """
    if isinstance(record, (dict, list)):
        named = record.items() if isinstance(record, dict) else enumerate(record)
        inner = (plain(value, f"{name}.{key}" if name else str(key)) for key, value in named)
        return {column: value for found in inner for column, value in found.items()}
    if record is None:
        return {name: ""}
    return {name: record if isinstance(record, str) else json.dumps(record, ensure_ascii=False)}


def _matches(path: Path, text: str, pattern: str) -> Iterator[dict[str, str]]:
    """Yield the named groups of all matches, which must be all that the file holds."""
    end = 0
    text = text.replace("\r\n", "\n")
    for match in re.finditer(pattern, text):
        if between := text[end : match.start()].strip():
            break
        end = match.end()
        yield {name: value or "" for name, value in match.groupdict().items()}
    else:
        between = text[end:].strip()
    if between:
        line = text.count("\n", 0, text.index(between, end)) + 1
        raise InputError(f"{path}: line {line} is not an example: {between[:60]!r}; mend it")
