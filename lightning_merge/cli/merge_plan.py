"""What a merge makes of every tensor, and what it will take: the list of a dry run."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import torch

from lightning_merge.core.checkpoints.checkpoint import Checkpoint
from lightning_merge.core.checkpoints.names import is_statistic
from lightning_merge.core.checkpoints.safetensors_file import Layout
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.tiles import spans
from lightning_merge.core.vectors.towers import summary
from lightning_merge.methods.base import MergeMethod

_TILES = 32  # read to measure how fast files are read
MERGED, STATISTICS, TIED = "merged", "statistics of BatchNorm, merged", "merged as they are tied"
UNCHANGED, INTEGERS = "unchanged by every expert", "not floating-point"
IGNORED, ABSENT = "ignored", "in no expert"


class MergePlan(NamedTuple):
    """What becomes of every tensor.

    Attributes:
        layout: Type and shape of every tensor of the output.
        made: Names of the tensors that are computed, by kind.
        copied: Names of those that are the base's, by reason.
        dropped: Names of the tensors of each expert that take no part.
        experts: Number of experts.
    """

    layout: Layout
    made: dict[str, list[str]]
    copied: dict[str, list[str]]
    dropped: dict[str, list[str]]
    experts: int

    @property
    def line(self) -> str:
        """How many tensors are merged and copied, and why these."""
        merged, copied = (sum(map(len, part.values())) for part in (self.made, self.copied))
        reasons = ", ".join(f"{len(names)} {why}" for why, names in self.copied.items())
        dropped = sum(map(len, self.dropped.values()))
        left = f", {dropped} of experts left out" if dropped else ""
        why = f" ({reasons})" if reasons else ""
        return (
            f"{merged} tensors of {self.experts} experts merged, {copied} of the base copied"
            f"{why}{left}"
        )

    def lines(self) -> Iterator[str]:
        """Yield one line for each kind of tensor: number, bytes and names."""
        groups = {**self.made, **{f"copied, {why}": names for why, names in self.copied.items()}}
        for kind, names in groups.items():
            size = in_bytes(self._bytes(names))
            yield f"  {kind}: {len(names)} tensors, {size}: {summary(names)}"
        for task, names in self.dropped.items():
            yield f"  left out of {task}: {len(names)} tensors: {summary(names)}"

    @property
    def size(self) -> int:
        """Bytes of the output."""
        return self._bytes(self.layout)

    def _bytes(self, names: Sequence[str] | Layout) -> int:
        return sum(_size(*self.layout[name]) for name in names)


def _size(dtype: torch.dtype, shape: Sequence[int]) -> int:
    return math.prod(shape) * dtype.itemsize


def merge_plan(
    whole: Checkpoint,
    vectors: TaskVectors,
    layout: Layout,
    passed: Sequence[str],
    dropped: Mapping[str, Sequence[str]],
) -> MergePlan:
    """Sort the tensors of a base by what becomes of them.

    Args:
        whole: The base as stored.
        vectors: Task vectors of what takes part.
        layout: Type and shape of every tensor of the output.
        passed: Names that no expert has.
        dropped: Names of each expert's tensors that take no part.
    """
    stored = vectors.stored
    computed, absent = set(stored.computed()), set(passed)
    made: dict[str, list[str]] = {MERGED: [], STATISTICS: [], TIED: []}
    copied: dict[str, list[str]] = {UNCHANGED: [], INTEGERS: [], IGNORED: [], ABSENT: []}
    for name in whole:
        if name in computed:
            kind = STATISTICS if is_statistic(name) else TIED if name in stored.ties else MERGED
            made[kind].append(name)
        elif name in absent:
            copied[ABSENT].append(name)
        elif name not in stored.base:
            copied[IGNORED].append(name)
        else:
            floating = stored.base.dtype(name).is_floating_point
            copied[UNCHANGED if floating else INTEGERS].append(name)
    left = {task: [*names] for task, names in dropped.items() if names}
    return MergePlan(layout, _filled(made), _filled(copied), left, len(vectors.tasks))


def _filled(groups: dict[str, list[str]]) -> dict[str, list[str]]:
    return {kind: names for kind, names in groups.items() if names}


def estimate(plan: MergePlan, vectors: TaskVectors, method: MergeMethod) -> str:
    """Return one line on what the merge will read and write, and how long that takes.

    The time is that of the bytes, at the speed of a few tiles that are read for it; readings are
    those of the method's facts. What the method computes besides is named and not counted.

    Args:
        plan: What becomes of every tensor.
        vectors: Task vectors of what takes part.
        method: The method.
    """
    facts = method.requirements()
    readings = facts.readings + sum(t.facts.readings for t in method.transforms)
    stored = vectors.stored
    models = [stored.base, *stored.experts.values()]
    once = sum(_size(m.dtype(n), m.shape(n)) for n in stored.names for m in models)
    if not stored.names:
        return f"no expert has changed a weight: the base is copied, {in_bytes(plan.size)}"
    name, speed = _speed(vectors)
    work = [facts.work, *(t.facts.work for t in method.transforms)]
    besides = f"; not counted: {', '.join(filter(None, work))}" if any(work) else ""
    return (
        f"reads {in_bytes(once)} {readings} time{'s' * (readings != 1)} and writes "
        f"{in_bytes(plan.size)}: about {(readings * once + plan.size) / speed:.1f} s at "
        f"{in_bytes(speed)}/s, measured on {name} with one process{besides}"
    )


def _speed(vectors: TaskVectors) -> tuple[str, float]:
    """Return the bytes per second that are read of the largest tensor that counts."""
    stored = vectors.stored
    name = max(stored.names, key=stored.base.numel)
    models = [stored.base, *stored.experts.values()]
    entry = sum(model.dtype(name).itemsize for model in models)
    started, read = time.perf_counter(), 0
    for span in islice(spans(name, stored.base.shape(name), len(models)), _TILES):
        stored.read(span)
        read += entry * (span.stop - span.start)
    return name, max(read, 1) / max(time.perf_counter() - started, 1e-6)


def in_bytes(size: float) -> str:
    """Return a number of bytes with its unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
