"""Seeded splits, and the proof that no image is on both sides of one."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_merge.core.errors import InputError
from lightning_merge.data.source import Examples


def stratified_indices(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Choose about `fraction` of each class, at least one of each where the class has two.

    Args:
        labels: int64 [n].
        fraction: share of every class to choose, in [0, 1].
        seed: of the permutation.

    Returns:
        Sorted int64 indices of the chosen examples.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    chosen = []
    for label in labels.unique().tolist():
        members = order[labels[order] == label]
        count = round(fraction * len(members))
        if fraction > 0 and len(members) > 1:
            count = max(count, 1)
        chosen.append(members[:count])
    return torch.cat(chosen).sort().values


def complement(indices: Tensor, size: int) -> Tensor:
    """Return the sorted indices below `size` that are not in `indices`."""
    rest = torch.ones(size, dtype=torch.bool)
    rest[indices] = False
    return rest.nonzero().flatten()


def without_copies(indices: Tensor, hashes: list[str]) -> Tensor:
    """Leave out the indices whose image also occurs at an index that was not chosen."""
    rest = {hashes[i] for i in complement(indices, len(hashes)).tolist()}
    return torch.tensor([i for i in indices.tolist() if hashes[i] not in rest], dtype=torch.long)


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


def content_hashes(examples: Examples) -> list[str]:
    """Return one short digest per image."""
    return [hashlib.blake2b(examples.content(i), digest_size=12).hexdigest()
            for i in range(len(examples))]


def digest(hashes: Iterable[str], labels: Tensor) -> str:
    """Return one digest of a split: its images, labels and their order."""
    whole = hashlib.blake2b("".join(hashes).encode(), digest_size=16)
    whole.update(labels.numpy().tobytes())
    return whole.hexdigest()


def check_disjoint(task: str, parts: dict[str, list[str]]) -> None:
    """Raise InputError where the same image is in two parts of a task.

    Args:
        task: name of the task, for the message.
        parts: part name -> digests of its images.
    """
    seen: dict[str, str] = {}
    for part, hashes in parts.items():
        for value in set(hashes):
            if value in seen:
                shared = len(set(hashes) & set(parts[seen[value]]))
                raise InputError(
                    f"task {task!r}: {shared} image(s) are in both {seen[value]} and {part}; "
                    "a number measured on them would not be honest. Remove them from one side"
                )
            seen[value] = part
