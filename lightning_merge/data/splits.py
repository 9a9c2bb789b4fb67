"""Seeded splits, and the proof that no image is on both sides of one."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.files import write_text
from lightning_merge.core.errors import InputError
from lightning_merge.core.progress import tracked
from lightning_merge.data.examples import Examples


def stratified_indices(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Choose about `fraction` of each class: of two or more images neither none nor all.

    Args:
        labels: int64 [n].
        fraction: Share of every class to choose, in (0, 1).
        seed: Of the permutation.

    Returns:
        Sorted int64 indices of the chosen examples.
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


def complement(indices: Tensor, size: int) -> Tensor:
    """Return the sorted indices below `size` that are not in `indices`."""
    rest = torch.ones(size, dtype=torch.bool)
    rest[indices] = False
    return rest.nonzero().flatten()


def divide(
    labels: Tensor,
    hashes: Sequence[str],
    fraction: float,
    seed: int,
    leave_out: Collection[str] = (),
) -> tuple[Tensor, Tensor]:
    """Divide a train split into images to train on and held-out ones.

    The division depends on this split and the seed alone. An image of which a copy would be
    on the other side is trained on.

    Args:
        labels: int64 [n].
        hashes: One digest per image.
        fraction: Share of every class to hold out.
        seed: Of the division.
        leave_out: Digests of images that go to neither side.

    Returns:
        Sorted int64 rows to train on, and rows held out.
    """
    held_out = stratified_indices(labels, fraction, seed)
    trained = {hashes[row] for row in complement(held_out, len(labels)).tolist()}
    copies = [row for row in held_out.tolist() if hashes[row] in trained]
    held_out = held_out[~torch.isin(held_out, torch.tensor(copies, dtype=torch.long))]
    wanted = torch.tensor([value not in leave_out for value in hashes], dtype=torch.bool)
    train = complement(held_out, len(labels))
    return train[wanted[train]], held_out[wanted[held_out]]


def draw_share(rows: Tensor, fraction: float, seed: int) -> Tensor:
    """Choose `fraction` of the rows at random, at least one; a smaller share is part of a larger.

    Returns:
        The chosen rows in ascending order.
    """
    generator = torch.Generator().manual_seed(seed)
    count = max(1, round(fraction * len(rows)))
    return rows[torch.randperm(len(rows), generator=generator)[:count].sort().values]


def balanced_counts(total: int, sizes: Iterable[int]) -> list[int]:
    """Spread `total` draws over pools of the given sizes as evenly as they allow."""
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


def content_hashes(examples: Examples, what: str) -> list[str]:
    """Return one short digest per image; every image is read once.

    Args:
        examples: The images.
        what: Their name, for the progress shown.

    Raises:
        InputError: An image is evidently broken.
    """
    rows = tracked(range(len(examples)), f"reading {what}")
    return [hashlib.blake2b(examples.content(i), digest_size=12).hexdigest() for i in rows]


def digest(hashes: Iterable[str], labels: Tensor) -> str:
    """Return one digest of a split: its images, labels and their order."""
    whole = hashlib.blake2b("".join(hashes).encode(), digest_size=16)
    whole.update(labels.numpy().tobytes())
    return whole.hexdigest()


def check_disjoint(task: str, parts: dict[str, list[str]]) -> None:
    """Raise InputError where the same image is in two parts of a task.

    Args:
        task: Name of the task, for the message.
        parts: Part name -> digests of its images.
    """
    seen: dict[str, str] = {}
    for part, hashes in parts.items():
        for value in set(hashes):
            if value in seen:
                shared = len(set(hashes) & set(parts[seen[value]]))
                raise InputError(
                    f"task {task!r}: {shared} image(s) are in both {seen[value]} and {part}; a "
                    "number measured on them would not be honest. Remove them from one side, or "
                    "leave copies of test images out of training by data.duplicates: drop"
                )
        seen.update(dict.fromkeys(hashes, part))


def write(path: Path, settings: Mapping[str, Any], tasks: Mapping[str, Any]) -> None:
    """Write the record of a division as JSON, one line per setting and per task."""
    head = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in settings.items()]
    rows = [f"  {json.dumps(task)}: {json.dumps(found)}" for task, found in tasks.items()]
    text = ",\n".join([*head, ' "tasks": {\n' + ",\n".join(rows) + "\n }"])
    write_text(path, f"{{\n{text}\n}}\n")
