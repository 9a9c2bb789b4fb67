"""Seeded splits, and the check that no image is on both sides of one."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_merge.core.checkpoints.files import write_text
from lightning_merge.core.errors import InputError
from lightning_merge.core.progress import tracked
from lightning_merge.core.seeding import generator_for
from lightning_merge.data.examples import Examples


def stratified_indices(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Choose about `fraction` of each class; of two images or more, at least one and not all.

    Args:
        labels: Classes, int64 [n].
        fraction: Share of every class to choose, in (0, 1).
        seed: Seed of the permutation.

    Returns:
        Sorted indices of the chosen examples, int64.

    Examples:
        >>> labels = torch.tensor([0] * 10 + [1] * 2)
        >>> labels[stratified_indices(labels, 0.3, seed=0)]
        tensor([0, 0, 0, 1])
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    chosen = [torch.empty(0, dtype=torch.long)]
    for label in labels.unique().tolist():
        members = order[labels[order] == label]
        count = round(fraction * len(members))
        if len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        chosen.append(members[:count])
    return torch.cat(chosen).sort().values


def hold_out(labels: Tensor, fraction: float, seed: int, groups: Tensor | None = None) -> Tensor:
    """Choose about `fraction` of each class, of whole groups only.

    A group counts as one example, with the class of its first one.

    Args:
        labels: Classes, int64 [n].
        fraction: Share of every class to choose, in (0, 1).
        seed: Seed of the choice.
        groups: Group of each example, int64 [n]; every example is one of its own if None.

    Returns:
        Sorted indices of the chosen examples, int64.

    Examples:
        >>> groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> groups[hold_out(torch.zeros(8).long(), 0.5, 0, groups)].bincount(minlength=4).sort()[0]
        tensor([0, 0, 2, 2])
    """
    if groups is None:
        return stratified_indices(labels, fraction, seed)
    first = torch.from_numpy(np.unique(groups.numpy(), return_index=True)[1])
    held_out = first[stratified_indices(labels[first], fraction, seed)]
    return torch.isin(groups, groups[held_out]).nonzero().flatten()


def complement(indices: Tensor, size: int) -> Tensor:
    """Return the sorted indices below `size` that are not in `indices`.

    Examples:
        >>> complement(torch.tensor([1, 3]), size=5)
        tensor([0, 2, 4])
    """
    rest = torch.ones(size, dtype=torch.bool)
    rest[indices] = False
    return rest.nonzero().flatten()


def divide(
    labels: Tensor,
    hashes: Sequence[str],
    fraction: float,
    seed: int,
    leave_out: Collection[str] = (),
    groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Divide a train split into images to train on and held-out images.

    The division depends only on this split and the seed. All copies of an image are trained on if
    they would be on both sides.

    Args:
        labels: Classes, int64 [n].
        hashes: One digest per image.
        fraction: Share of every class to hold out.
        seed: Seed of the division.
        leave_out: Digests of examples that go to neither side.
        groups: Group of each example, which is on one side, int64 [n]; none if None.

    Returns:
        Sorted rows to train on and sorted held-out rows, int64.

    Examples:
        >>> train, held_out = divide(torch.zeros(5).long(), ["a", "b", "c", "d", "e"], 0.4, seed=0)
        >>> len(train), len(held_out)
        (3, 2)
    """
    held_out = hold_out(labels, fraction, seed, groups)
    trained = {hashes[row] for row in complement(held_out, len(labels)).tolist()}
    copied = [row for row in held_out.tolist() if hashes[row] in trained]
    copies = torch.tensor(copied, dtype=torch.long)
    if groups is not None:
        copies = torch.isin(groups, groups[copies]).nonzero().flatten()
    held_out = held_out[~torch.isin(held_out, copies)]
    wanted = torch.tensor([value not in leave_out for value in hashes], dtype=torch.bool)
    train = complement(held_out, len(labels))
    return train[wanted[train]], held_out[wanted[held_out]]


def draw_few(rows: Tensor, labels: Tensor, most: int, seed: int) -> Tensor:
    """Choose at most some rows, of every class in proportion to its size.

    Which rows of a class come first depends on the split and the seed, not on the other rows, so
    that a row more or less changes the choice by a few.

    Args:
        rows: Rows of a split, ascending, int64 [n].
        labels: Classes of the whole split.
        most: Number of rows to choose, if there are more.
        seed: Seed of the choice.

    Returns:
        The chosen rows in ascending order.

    Examples:
        >>> labels = torch.tensor([0] * 6 + [1] * 3)
        >>> labels[draw_few(torch.arange(9), labels, most=3, seed=0)]
        tensor([0, 0, 1])
    """
    if most >= len(rows):
        return rows
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).argsort()
    members = [
        own[order[own].argsort()]
        for c in labels[rows].unique()
        if len(own := rows[labels[rows] == c])
    ]
    shares = [most * len(own) / len(rows) for own in members]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: most - sum(counts)]:
        counts[i] += 1
    return torch.cat([own[:n] for own, n in zip(members, counts, strict=True)]).sort().values


def draw_share(rows: Tensor, fraction: float, seed: int) -> Tensor:
    """Choose `fraction` of the rows at random, at least one; shares of one seed are nested.

    Args:
        rows: Rows, ascending, int64 [n].
        fraction: Share to choose, in (0, 1].
        seed: Seed of the choice.

    Returns:
        The chosen rows in ascending order.

    Examples:
        >>> rows = torch.arange(100)
        >>> small, large = draw_share(rows, 0.05, seed=0), draw_share(rows, 0.5, seed=0)
        >>> len(small), bool(torch.isin(small, large).all())
        (5, True)
    """
    generator = torch.Generator().manual_seed(seed)
    count = max(1, round(fraction * len(rows)))
    return rows[torch.randperm(len(rows), generator=generator)[:count].sort().values]


def balanced_counts(total: int, sizes: Iterable[int]) -> list[int]:
    """Spread `total` draws over pools of the given sizes as evenly as possible.

    Examples:
        >>> balanced_counts(10, [2, 100, 100])
        [2, 4, 4]
    """
    sizes = list(sizes)
    counts = [0] * len(sizes)
    left = min(total, sum(sizes))
    while left:
        open_pools = [i for i, size in enumerate(sizes) if counts[i] < size]
        share = max(1, left // len(open_pools))
        for i in open_pools:
            take = min(share, sizes[i] - counts[i], left)
            counts[i] += take
            left -= take
    return counts


def draw_evenly(total: int, sizes: Mapping[str, int], seed: int) -> dict[str, list[int]]:
    """Sample positions as evenly as possible over tasks.

    The sample of a task depends on its name, its size, the seed and the number drawn.

    Args:
        total: Number of positions.
        sizes: Task -> number of its images.
        seed: Seed of the sample.

    Returns:
        Task -> positions; tasks of which none is drawn are left out.

    Examples:
        >>> {task: len(rows) for task, rows in draw_evenly(5, {"cars": 2, "pets": 9}, 0).items()}
        {'cars': 2, 'pets': 3}
    """
    drawn = {}
    for (task, size), count in zip(
        sizes.items(), balanced_counts(total, sizes.values()), strict=True
    ):
        generator = generator_for(seed, "unlabelled", task)
        drawn[task] = torch.randperm(size, generator=generator)[:count].tolist()
    return {task: rows for task, rows in drawn.items() if rows}


def content_hashes(examples: Examples, what: str) -> list[str]:
    """Return one short digest per image; every image is read once.

    Args:
        examples: The images.
        what: Their name, for the progress bar.

    Raises:
        InputError: An image is evidently broken.

    Examples:
        >>> import numpy as np
        >>> from lightning_merge.data.examples import array_examples
        >>> copies = array_examples(["cat"], [0, 0], np.zeros((2, 8, 8), np.uint8))
        >>> first, second = content_hashes(copies, "cats")
        >>> first == second
        True
    """
    rows = tracked(range(len(examples)), f"reading {what}")
    return [hashlib.blake2b(examples.content(i), digest_size=12).hexdigest() for i in rows]


def digest(hashes: Iterable[str], labels: Tensor) -> str:
    """Return one digest of a split: its images, labels and their order.

    Examples:
        >>> digest(["a", "b"], torch.tensor([0, 1])) == digest(["b", "a"], torch.tensor([0, 1]))
        False
    """
    whole = hashlib.blake2b("".join(hashes).encode(), digest_size=16)
    whole.update(labels.numpy().tobytes())
    return whole.hexdigest()


def check_disjoint(task: str, parts: dict[str, list[str]]) -> None:
    """Check that no image is in two parts of a task.

    Args:
        task: Name of the task, for the message.
        parts: Part name -> digests of its images.

    Raises:
        InputError: An image is in two parts.

    Examples:
        >>> check_disjoint("pets", {"train": ["a", "b"], "test": ["b"]})
        Traceback (most recent call last):
        lightning_merge.core.errors.InputError: task 'pets': 1 example(s) are in both train and ...
    """
    seen: dict[str, str] = {}
    for part, hashes in parts.items():
        for value in set(hashes):
            if value in seen:
                shared = len(set(hashes) & set(parts[seen[value]]))
                raise InputError(
                    f"task {task!r}: {shared} example(s) are in both {seen[value]} and {part}, so "
                    "an accuracy on them would not be honest; remove them from one side, or "
                    "leave copies of test examples out of training by data.duplicates: drop"
                )
        seen.update(dict.fromkeys(hashes, part))


def write(path: Path, settings: Mapping[str, Any], tasks: Mapping[str, Any]) -> None:
    """Write the record of a division as JSON, one line per setting and per task.

    Args:
        path: The file.
        settings: Name -> value.
        tasks: Task -> its record.

    Examples:
        >>> write(Path("splits.json"), {"split_seed": 0}, {"pets": {"left_out": 2}})
        >>> print(Path("splits.json").read_text(), end="")
        {
         "split_seed": 0,
         "tasks": {
          "pets": {"left_out": 2}
         }
        }
    """
    head = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in settings.items()]
    rows = [f"  {json.dumps(task)}: {json.dumps(record)}" for task, record in tasks.items()]
    text = ",\n".join([*head, ' "tasks": {\n' + ",\n".join(rows) + "\n }"])
    write_text(path, f"{{\n{text}\n}}\n")
