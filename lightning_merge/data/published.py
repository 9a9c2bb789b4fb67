"""Divisions that others have published: text files that name the images of each split."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.files import read_text
from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.errors import InputError, warn


def find_lists(
    task: str, named: Mapping[str, Sequence[str]], folder: Path
) -> dict[str, list[Path]]:
    """Return the lists of each split that are in a folder; nothing where it has none.

    Args:
        task: Name of the task, for messages.
        named: Split -> names of its lists, of which the first is needed.
        folder: Where they lie.

    Raises:
        InputError: One of those that are needed is missing.
    """
    found = {s: [folder / n for n in names if (folder / n).is_file()] for s, names in named.items()}
    if not any(found.values()):
        return {}
    if lacking := [names[0] for s, names in named.items() if folder / names[0] not in found[s]]:
        raise InputError(
            f"data.splits={str(folder)!r} has a list of {task!r}, but no "
            f"{' and no '.join(lacking)}; add it, or remove the others of the task"
        )
    return found


def listed_rows(
    task: str, files: Sequence[Path], lists: Mapping[str, Sequence[Path]]
) -> dict[str, Tensor]:
    """Find the images that lists name.

    A line is the name of a file, with any of the folders above it: `/a/abbey/sun_1.jpg`,
    `AnnualCrop/AnnualCrop_1.jpg` and `AnnualCrop_1.jpg` are known. Images in no list are left
    out, and counted in a warning.

    Args:
        task: Name of the task, for messages.
        files: All images of the data set, at least one.
        lists: Split -> files of names.

    Returns:
        Split -> the rows of its images in `files`, ascending, int64 [n].

    Raises:
        InputError: A list is unreadable or empty, or names what is not there, is there twice, or
            is in another split.
    """
    top = os.path.commonpath([file.parent for file in files])
    places = _Places([file.relative_to(top).parts for file in files])
    found: dict[str, set[int]] = {}
    for split, parts in lists.items():
        found[split] = {row for part in parts for row in _rows_of(task, part, places)}
    if both := set.intersection(*found.values()):
        names = [files[row].name for row in sorted(both)]
        raise InputError(
            f"task {task!r}: the lists of {' and '.join(found)} in data.splits both name "
            f"{len(both)} images: {enumerate_names(names, 3)}; give lists that divide them"
        )
    if left := len(files) - sum(map(len, found.values())):
        names = [part.name for parts in lists.values() for part in parts]
        warn(
            f"task {task!r}: {left} of {len(files)} images are left out, as none of "
            f"{', '.join(names)} in data.splits names them"
        )
    return {split: torch.tensor(sorted(rows)) for split, rows in found.items()}


class _Places:
    """Paths of files, to be found by their last parts.

    Args:
        paths: Of each file, from the folder on that has them all.
    """

    def __init__(self, paths: Sequence[tuple[str, ...]]) -> None:
        self.paths = paths
        self._by_name: defaultdict[str, list[int]] = defaultdict(list)
        for row, path in enumerate(paths):
            self._by_name[path[-1]].append(row)

    def rows(self, line: str) -> list[int]:
        """Return the rows of the files that a line may mean."""
        parts = PurePosixPath(line.replace("\\", "/").lstrip("/")).parts
        return [row for row in self._by_name.get(parts[-1], ()) if _agree(parts, self.paths[row])]


def _agree(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    known = min(len(one), len(other))
    return one[-known:] == other[-known:]


def _rows_of(task: str, file: Path, places: _Places) -> list[int]:
    """Return the rows of the images that one list names."""
    try:
        lines = [line.strip() for line in read_text(file).splitlines() if line.strip(" /\\.\t")]
    except OSError as fault:
        raise InputError(f"{file} cannot be read: {fault.strerror or fault}") from None
    rows = {line: places.rows(line) for line in lines}
    if not lines:
        raise InputError(f"task {task!r}: {file} names no image; give the published list")
    if absent := [line for line, found in rows.items() if not found]:
        raise InputError(
            f"task {task!r}: {len(absent)} of {len(rows)} images that {file} names are not there: "
            f"{enumerate_names(absent, 3)}; give the list of this data set, and all of its images"
        )
    if several := [line for line, found in rows.items() if len(found) > 1]:
        raise InputError(
            f"task {task!r}: {len(several)} names in {file} may mean several images: "
            f"{enumerate_names(several, 3)}; write their folders in front"
        )
    return [found[0] for found in rows.values()]
