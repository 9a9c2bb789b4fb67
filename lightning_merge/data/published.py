"""Published divisions: text files that name the images of each split."""

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
    """Return the lists of each split in a folder; an empty mapping if the task has none.

    Args:
        task: Name of the task, for messages.
        named: Split -> names of its lists; the first is required.
        folder: Folder of the lists.

    Raises:
        InputError: A required list is missing.

    Examples:
        >>> Path("train.txt").touch()
        >>> lists = find_lists("pets", {"train": ["train.txt", "val.txt"]}, Path())
        >>> [path.name for path in lists["train"]]
        ['train.txt']
    """
    lists = {s: [folder / n for n in names if (folder / n).is_file()] for s, names in named.items()}
    if not any(lists.values()):
        return {}
    if lacking := [names[0] for s, names in named.items() if folder / names[0] not in lists[s]]:
        raise InputError(
            f"data.splits={str(folder)!r} has a list of {task!r}, but no "
            f"{' and no '.join(lacking)}; add it, or remove the task's other lists"
        )
    return lists


def listed_rows(
    task: str, files: Sequence[Path], lists: Mapping[str, Sequence[Path]]
) -> dict[str, Tensor]:
    """Find the images that lists name.

    A line is the name of a file, with or without the folders above it: `/a/abbey/sun_1.jpg`,
    `AnnualCrop/AnnualCrop_1.jpg` and `AnnualCrop_1.jpg` all occur. Images in no list are left out,
    and a warning says how many.

    Args:
        task: Name of the task, for messages.
        files: All images of the data set, at least one.
        lists: Split -> files of names.

    Returns:
        Split -> the rows of its images in `files`, ascending, int64 [n].

    Raises:
        InputError: A list is unreadable or empty, or names an image that is missing, ambiguous or
            in another split.

    Examples:
        >>> _ = Path("train.txt").write_text("cat/2.png"), Path("test.txt").write_text("1.png")
        >>> files = [Path("pets/cat/1.png"), Path("pets/cat/2.png")]
        >>> listed_rows("pets", files, {"train": [Path("train.txt")], "test": [Path("test.txt")]})
        {'train': tensor([1]), 'test': tensor([0])}
    """
    top = os.path.commonpath([file.parent for file in files])
    places = _Places([file.relative_to(top).parts for file in files])
    listed: dict[str, set[int]] = {}
    for split, parts in lists.items():
        listed[split] = {row for part in parts for row in _rows_of(task, part, places)}
    if both := set.intersection(*listed.values()):
        names = [files[row].name for row in sorted(both)]
        raise InputError(
            f"task {task!r}: the lists of {' and '.join(listed)} in data.splits both name "
            f"{len(both)} images: {enumerate_names(names, 3)}; give lists that divide them"
        )
    if left := len(files) - sum(map(len, listed.values())):
        names = [part.name for parts in lists.values() for part in parts]
        warn(
            f"task {task!r}: {left} of {len(files)} images are left out, as none of "
            f"{', '.join(names)} in data.splits names them"
        )
    return {split: torch.tensor(sorted(rows)) for split, rows in listed.items()}


class _Places:
    """Index of files by the last parts of their paths.

    Args:
        paths: Path of each file, relative to the folder that has them all.
    """

    def __init__(self, paths: Sequence[tuple[str, ...]]) -> None:
        self.paths = paths
        self._by_name: defaultdict[str, list[int]] = defaultdict(list)
        for row, path in enumerate(paths):
            self._by_name[path[-1]].append(row)

    def rows(self, line: str) -> list[int]:
        """Return the rows of the files that match a line."""
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
    if absent := [line for line, matches in rows.items() if not matches]:
        raise InputError(
            f"task {task!r}: {len(absent)} of {len(rows)} images that {file} names are missing: "
            f"{enumerate_names(absent, 3)}; give the list of this data set, and all of its images"
        )
    if several := [line for line, matches in rows.items() if len(matches) > 1]:
        raise InputError(
            f"task {task!r}: {len(several)} names in {file} match several images: "
            f"{enumerate_names(several, 3)}; write their folders in front"
        )
    return [matches[0] for matches in rows.values()]
