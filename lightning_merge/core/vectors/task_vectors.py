"""Task vectors of several experts, stacked and computed a tile at a time."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.checkpoint import as_checkpoint
from lightning_merge.core.checkpoints.names import common_prefix
from lightning_merge.core.checkpoints.safetensors_file import Layout
from lightning_merge.core.dtypes import common_dtype, wide_dtype
from lightning_merge.core.errors import InputError
from lightning_merge.core.parallel import Item, Result, run_each
from lightning_merge.core.vectors.scope import Kind, find_scope, is_merged

TILE = 2**19
"""Entries of all experts together that are read at a time: 2 MiB, so that they stay in cache."""


class Span(NamedTuple):
    """The entries [start, stop) of a tensor, flattened."""

    name: str
    start: int
    stop: int


TileMap = Callable[[Span, Tensor], Tensor]
"""Maps a span and its stack [K, n] to another stack [K, n]; it may change its input."""


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the precision of all sums."""
    return tensor.to(wide_dtype(tensor.dtype))


def flatten_tasks(stacked: Tensor) -> Tensor:
    """View a stack [K, *shape] as [K, numel], scalars and empty tensors included."""
    return stacked.reshape(len(stacked), stacked[0].numel())


def sum_tasks(stacked: Tensor) -> Tensor:
    """Sum of a stack [K, ...] over the experts, one after the other, [...].

    Unlike `Tensor.sum` it gives the same bits however the entries are divided into tiles.
    """
    total = stacked[0].clone()
    for row in stacked[1:]:
        total += row
    return total


class TaskVectors:
    """Task vectors tau_k = theta_k - theta_0 of K experts, computed when they are asked for.

    `read(span)` gives a tile [K, n] of one tensor's task vectors in float32 (float64 for tensors
    stored so), `vectors[name]` the whole stack [K, *shape]. Nothing is cached, so the memory in
    use is that of what was asked for, whatever the size of the mappings.

    Args:
        base: Pretrained weights by name.
        experts: Task to fine-tuned weights by name; `check_experts` has accepted them.
        jobs: Number of processes that work on tensors at once, see `run_each`.
        scope: Which tensors count in sums, ranks and quantiles: "all" that can have task vectors,
            or those that an expert has "changed", of tied ones the first.

    Attributes:
        tasks: The experts' names.
        names: The tensors that count, in the base's order.
        ties: Names of other tied tensors to the first one's, see `find_scope`.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        experts: Mapping[str, Mapping[str, Tensor]],
        jobs: int = 1,
        scope: Kind = "all",
    ) -> None:
        self.base = as_checkpoint(base)
        self.experts = {task: as_checkpoint(expert) for task, expert in experts.items()}
        self.tasks, self.jobs = tuple(experts), jobs
        self.names, self._kept, self.ties = find_scope(self.base, self.experts.values(), scope)
        self._prefix = common_prefix([n for n in self.names if n not in self._kept])
        in_memory = self.base.path is None and len(self.base) > 0
        self.device = next(iter(base.values())).device if in_memory else torch.device("cpu")
        if self.device.type != "cpu":  # a device cannot be used in forked processes
            self.jobs = 1
        self._maps: tuple[TileMap, ...] = ()
        self._whole = False
        self._zero: frozenset[str] = frozenset()

    def __len__(self) -> int:
        """Number of experts, K."""
        return len(self.tasks)

    def __getitem__(self, name: str) -> Tensor:
        """The task vectors of the named tensor, [K, *shape], after every map.

        Raises:
            InputError: The base's or an expert's tensor has a NaN or infinite value.
        """
        whole = self.read(Span(name, 0, self.numel(name)))
        return whole.view(len(self), *self.base.shape(name))

    def numel(self, name: str) -> int:
        """Number of entries of a tensor."""
        return self.base.numel(name)

    def key(self, name: str) -> str:
        """What random numbers of a tensor depend on: its name without the prefix of all names.

        So a network and a part of it draw the same ones where only that part was changed.
        """
        return name.removeprefix(self._prefix)

    def is_kept(self, name: str) -> bool:
        """Whether every expert has a floating-point tensor as the base has it, bit for bit."""
        return name in self._kept

    def dtype(self, name: str) -> torch.dtype:
        """The type of a merged tensor.

        It is the one that base and experts are stored in; where their floating types differ, the
        one that holds them all, so that nothing that an expert has learned is rounded away, see
        `common_dtype`. What is only copied keeps the base's.
        """
        dtype = self.base.dtype(name)
        if not dtype.is_floating_point or self.is_kept(name):
            return dtype
        return common_dtype([dtype, *(expert.dtype(name) for expert in self.experts.values())])

    def layout(self) -> Layout:
        """Type and shape of every merged tensor by name."""
        return {name: (self.dtype(name), self.base.shape(name)) for name in self.base}

    def spans(self, name: str) -> Iterator[Span]:
        """The tiles of a tensor: about `TILE` / K entries.

        They are whole rows of the matrix [out, rest]; where one alone is larger than that, of the
        last dimension of tensors [a, b, c], such as fused experts, and [1, ...], such as positions.
        """
        if self._whole and self.numel(name):
            yield Span(name, 0, self.numel(name))
            return
        shape, most = self.base.shape(name), TILE // len(self)
        row = max(1, self.row(name))
        if row > most and (len(shape) == 3 or shape[:1] == (1,)):
            row = max(1, shape[-1])
        size, step = self.numel(name), max(1, most // row) * row
        for start in range(0, size, step):
            yield Span(name, start, min(start + step, size))

    def computed(self) -> list[str]:
        """The tensors whose values follow from the experts', tied ones and statistics included."""
        floating = (name for name in self.base if self.base.dtype(name).is_floating_point)
        return [name for name in floating if not self.is_kept(name)]

    def row(self, name: str) -> int:
        """Entries of a row of the matrix [out, rest]; 1 of a vector."""
        return torch.Size(self.base.shape(name)[1:]).numel()

    def rows(self, span: Span) -> slice:
        """The rows of the matrix [out, rest] that a span holds.

        Raises:
            InputError: It does not hold whole ones.
        """
        row = self.row(span.name)
        if span.start % row or span.stop % row:
            raise InputError(
                f"{span.name}: {TILE} entries at a time do not hold a row of {row} for all "
                f"{len(self)} experts; merge fewer"
            )
        return slice(span.start // row, span.stop // row)

    def read(self, span: Span) -> Tensor:
        """The task vectors' entries after every map, a new tensor [K, n].

        Raises:
            InputError: The base's or an expert's entries have a NaN or infinite value.
        """
        return self._tile(span, *self._buffers(span))

    def sample(self, span: Span) -> tuple[Tensor, Tensor]:
        """The base's entries [n] and the task vectors' [K, n], as stored and unchecked."""
        base, tile = self._buffers(span)
        self._fill(span, base, tile)
        return base, tile.sub_(base)

    def tiles(self, name: str) -> Iterator[tuple[Span, Tensor, Tensor]]:
        """Every span of a tensor with the base's entries [n] and the task vectors' [K, n].

        Their memory is used again for the next span, so that the system need not find new pages
        for each; the caller may change them.

        Raises:
            InputError: The base's or an expert's entries have a NaN or infinite value.
        """
        buffers: tuple[Tensor, Tensor] | None = None
        for span in self.spans(name):
            buffers = buffers or self._buffers(span)
            size = span.stop - span.start
            base = buffers[0][:size]
            tile = self._tile(span, base, buffers[1].view(-1)[: len(self) * size].view(-1, size))
            yield span, base, tile

    def stack(self, name: str) -> Tensor:
        """The experts' stored tensors of that name, statistics included, [K, *shape].

        Raises:
            InputError: The base's or an expert's tensor has a NaN or infinite value.
        """
        span = Span(name, 0, self.numel(name))
        base, tile = self._buffers(span)
        self._fill(span, base, tile)
        if not self.is_kept(name):
            self._check_finite(span, tile, base)
        return tile.view(len(self), *self.base.shape(name))

    def weights(self, name: str) -> Tensor:
        """The floating-point weights of the experts that the task vectors stand for, [K, *shape].

        They are theta_0 + tau_k after every map; statistics are those stored.

        Raises:
            InputError: The base's or an expert's tensor has a NaN or infinite value.
        """
        if not is_merged(name, self.base.dtype(name)):
            return self.stack(name)
        return self[name] + wide(self.base[name])

    def expert(self, name: str, index: int) -> Tensor:
        """The weights of one expert, [*shape]: a row of `weights`.

        Where no map needs to see the experts together, the others are not read.
        """
        merged = is_merged(name, self.base.dtype(name))
        if not merged or self._is_plain(name):
            found = wide(self.experts[self.tasks[index]][name])
            if bool(found.isfinite().all()):
                return found
        return self.weights(name)[index]  # names what is not finite

    def of_expert(self, name: str, index: int) -> Tensor:
        """The task vector of one expert, [*shape]; like `expert` it reads no others if it can."""
        if not self._is_plain(name):
            return self[name][index]
        base = wide(self.base[name])
        return self.expert(name, index).to(base.dtype) - base

    def _is_plain(self, name: str) -> bool:
        """Whether a tensor's task vectors are the differences of what is stored."""
        return not self._maps and not self.is_zero(name)

    def map(self, function: TileMap) -> "TaskVectors":
        """A lazy view in which every tile has also passed through `function(span, tile)`."""
        view = copy(self)
        view._maps = (*self._maps, function)
        return view

    def whole(self) -> "TaskVectors":
        """A lazy view in which every tensor is one tile, for what needs its entries together.

        Memory in use is then that of the largest tensor of all experts.
        """
        view = copy(self)
        view._whole = True
        return view

    def zeroed(self, names: Iterable[str]) -> "TaskVectors":
        """A lazy view in which the named tensors' task vectors are zero.

        The experts' tensors are then not read, and later maps, which must take zeros to zeros,
        are not called on them.
        """
        view = copy(self)
        view._zero = self._zero | frozenset(names)
        return view

    def is_zero(self, name: str) -> bool:
        """Whether the named tensor's task vectors are known to be zero."""
        return name in self._zero or name in self._kept

    def each(self, items: Iterable[Item], function: Callable[[Item], Result]) -> list[Result]:
        """Call a function on names, or groups of them, see `run_each`; results in their order."""
        return run_each(function, items, self.jobs, "reading tensors")

    def groups(self, names: Iterable[str]) -> list[list[str]]:
        """The names in `jobs` groups of about as many entries each."""
        groups: list[list[str]] = [[] for _ in range(self.jobs)]
        sizes = [0] * self.jobs
        for name in sorted(names, key=self.numel, reverse=True):
            smallest = sizes.index(min(sizes))
            groups[smallest].append(name)
            sizes[smallest] += self.numel(name)
        return groups

    def _buffers(self, span: Span) -> tuple[Tensor, Tensor]:
        """Memory for the base's entries [n] and the experts' [K, n], in the type of sums."""
        dtype, size = wide_dtype(self.base.dtype(span.name)), span.stop - span.start
        empty = partial(torch.empty, dtype=dtype, device=self.device)
        return empty(size), empty(len(self), size)

    def _fill(self, span: Span, base: Tensor, tile: Tensor) -> None:
        self.base.read_into(span.name, span.start, base)
        for row, expert in zip(tile, self.experts.values(), strict=True):
            expert.read_into(span.name, span.start, row)

    def _tile(self, span: Span, base: Tensor, tile: Tensor) -> Tensor:
        """Read into the given memory, and return the mapped task vectors."""
        span = span._replace(name=self.ties.get(span.name, span.name))
        if self.is_zero(span.name):
            self.base.read_into(span.name, span.start, base)
            return tile.zero_()
        self._fill(span, base, tile)
        tile.sub_(base)
        self._check_finite(span, tile, base)
        for function in self._maps:
            tile = function(span, tile)
        return tile

    def _check_finite(self, span: Span, tile: Tensor, base: Tensor) -> None:
        if math.isfinite(tile.sum()):
            return
        if not torch.isfinite(base).all():
            raise InputError(
                f"base: {span.name} has NaN or infinite values; save the checkpoint again"
            )
        broken = [t for t, row in zip(self.tasks, tile, strict=True) if not row.isfinite().all()]
        if broken:
            raise InputError(
                f"experts: {span.name} of {', '.join(broken)} has NaN or infinite values; "
                "leave such an expert out or save its checkpoint again"
            )
