"""Merging out of core: the loop over tensors and tiles, and where merged tensors go."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.flat import check_fits
from lightning_merge.core.checkpoints.safetensors_file import Layout
from lightning_merge.core.errors import InputError
from lightning_merge.core.parallel import run_each
from lightning_merge.core.vectors.scope import is_merged
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.tiles import Span

Update = Callable[[Span, Tensor], Tensor]
"""From a span of a tensor and its task vectors [K, n] to the merged update [n].

It may change the task vectors, and the caller may change the result.
"""


class Sink(Protocol):
    """A destination of merged tensors, written a run of entries at a time.

    Attributes:
        shared: Whether several processes can write to it, as to a file.

    Examples:
        >>> class Printer:
        ...     shared = False
        ...
        ...     def write(self, name, start, values):
        ...         print(name, start, values)
        ...
        ...     def written(self, name, runs):
        ...         print(name, runs)
        >>> from lightning_merge.methods import Average, Resources
        >>> experts = {"cars": {"w": torch.tensor([1.0, 2.0])}}
        >>> Average().merge_to(Printer(), {"w": torch.zeros(2)}, experts, Resources())
        w 0 tensor([1., 2.])
        w [(0, 2)]
    """

    shared: bool

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Write entries [n] of a flattened tensor from `start` on, of any floating type."""

    def written(self, name: str, runs: list[tuple[int, int]]) -> None:
        """Note which entries [start, stop) of a tensor any process has written."""


class InMemory:
    """A sink that keeps tensors in memory.

    Args:
        layout: Type and shape by name.
        device: Where to keep the tensors.

    Attributes:
        tensors: Merged tensors by name.

    Examples:
        >>> sink = InMemory({"w": (torch.float32, (3,))})
        >>> sink.write("w", 0, torch.tensor([1.0, 2.0]))
        >>> sink.write("w", 2, torch.tensor([3.0]))
        >>> sink.tensors["w"]
        tensor([1., 2., 3.])
    """

    shared = False

    def __init__(self, layout: Layout, device: torch.device | None = None) -> None:
        self.tensors = {
            name: torch.empty(shape, dtype=dtype, device=device)
            for name, (dtype, shape) in layout.items()
        }

    def write(self, name: str, start: int, values: Tensor) -> None:
        """See `Sink`."""
        target = self.tensors[name].view(-1)[start : start + len(values)]
        target.copy_(values)
        check_fits(name, values, target)

    def written(self, name: str, runs: list[tuple[int, int]]) -> None:
        """See `Sink`."""


def merge_each(
    vectors: TaskVectors,
    update: Update,
    sink: Sink,
    ties: Mapping[str, str],
    merged: Mapping[str, Tensor] | None = None,
) -> None:
    """Merge every tensor of the base into a sink, in several processes if it is shared.

    Args:
        vectors: Task vectors.
        update: What a method's plan returned.
        sink: Where the merged tensors go.
        ties: Name of a tied tensor to the name of the first one, see `Resources.ties`.
        merged: Tensors merged already, by name; they are only written.

    Examples:
        >>> vectors = TaskVectors({"w": torch.ones(2)}, {"cars": {"w": torch.tensor([2.0, 4.0])}})
        >>> sink = InMemory(vectors.stored.layout())
        >>> merge_each(vectors, lambda span, tile: tile[0] / 2, sink, ties={})
        >>> sink.tensors["w"]
        tensor([1.5000, 2.5000])
    """
    ready, names = merged or {}, list(vectors.base)

    def one(name: str) -> list[tuple[int, int]]:
        first = ties.get(name, name)
        if first not in ready:
            return merge_one(vectors, first, update, sink, name)
        sink.write(name, 0, ready[first].reshape(-1))
        return [(0, vectors.numel(name))]

    runs = run_each(one, names, vectors.jobs if sink.shared else 1, "merging tensors")
    for name, written in zip(names, runs, strict=True):
        sink.written(name, written)


def merge_one(
    vectors: TaskVectors, name: str, update: Update, sink: Sink, to: str | None = None
) -> list[tuple[int, int]]:
    """Update, average or copy one tensor, depending on its kind, and write it.

    The tensor is written under the given name, by default its own, and rounded by the sink.

    Returns:
        The runs of entries [start, stop) that were written.

    Raises:
        InputError: A value is not finite, or too large for its type.

    Examples:
        >>> vectors = TaskVectors({"w": torch.ones(2)}, {"cars": {"w": torch.tensor([2.0, 4.0])}})
        >>> sink = InMemory(vectors.stored.layout())
        >>> merge_one(vectors, "w", lambda span, tile: tile[0] / 2, sink)
        [(0, 2)]
        >>> sink.tensors["w"]
        tensor([1.5000, 2.5000])
    """
    kind, to, stored = vectors.base.dtype(name), to or name, vectors.stored
    if not is_merged(name, kind) and not stored.is_kept(name):
        values = stored.stack(name).mean(0) if kind.is_floating_point else vectors.base[name]
        sink.write(to, 0, values.reshape(-1))
        return [(0, vectors.numel(name))]
    runs = []
    for span, merged, tile in vectors.tiles(name):
        if not vectors.is_zero(name):
            add_update(name, merged, update(span, tile))
        sink.write(to, span.start, merged)
        runs.append((span.start, span.stop))
    return runs


def add_update(name: str, merged: Tensor, update: Tensor) -> None:
    """Add an update [n] to the base's entries [n] in place.

    Raises:
        InputError: The sum is not finite; names the tensor.

    Examples:
        >>> entries = torch.ones(2)
        >>> add_update("w", entries, torch.tensor([0.5, 1.0]))
        >>> entries
        tensor([1.5000, 2.0000])
    """
    merged.add_(update)
    _check_finite(name, merged)


def _check_finite(name: str, merged: Tensor) -> None:
    """Check that merged values are finite.

    Raises:
        InputError: A value is not; names the tensor.
    """
    if not bool(merged.isfinite().all()):
        raise InputError(
            f"the merged {name} is too large for {merged.dtype}: choose a smaller scale"
        )
