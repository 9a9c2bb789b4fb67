"""Exact order statistics of magnitudes that are never in memory together."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_merge.core.dtypes import wide_dtype
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.tiles import Span

_SMALL = 2**15  # entries per expert that are simply read and partitioned
_BINS = 2**21  # of all histograms together: 16 MiB
_WAITING = 2**21  # entries in memory, before they become a histogram: 8 MiB
BLOCK = 256
"""Entries that are sampled together."""
_SAMPLE = (2**13, 2**18)  # entries per expert, at least and at most


class Order(NamedTuple):
    """The rank-th smallest magnitude of every expert.

    Attributes:
        value: The magnitude, [K].
        less: How many magnitudes are smaller, int64 [K]; rank - 1 unless several are equal.
    """

    value: Tensor
    less: Tensor


class Sample(NamedTuple):
    """What is known of entries before they are searched.

    Attributes:
        total: Number of entries of each expert.
        blocks: Some of them as `sampled_blocks` takes them, [K, BLOCK] each.
    """

    total: int
    blocks: Sequence[Tensor]


def kth_smallest_magnitude(
    vectors: TaskVectors, names: Sequence[str], rank: int, sample: Sample | None = None
) -> Order:
    """Return the rank-th smallest |entry| of every expert over the named tensors together.

    Read as integers, the bits of magnitudes are ordered as the magnitudes are. A sample gives a
    narrow range of bits; one pass counts what lies below it and keeps what lies in it or, if
    that is much, its histogram. Where the range proves wrong, or a bin holds several values,
    another pass follows. So the result is exact, the memory bounded, and the data are usually
    read once.

    Args:
        vectors: Task vectors, read in tiles.
        names: Tensors that are ranked together.
        rank: 1 for the smallest, up to the number of entries.
        sample: Given where maps need a whole tensor, or change the number of its entries; read
            from the tensors by default.
    """
    dtype = torch.float32
    for name in names:
        dtype = torch.promote_types(dtype, wide_dtype(vectors.base.dtype(name)))
    total = sample.total if sample else sum(vectors.numel(name) for name in names)
    if total <= _SMALL:
        tiles = [vectors.read(span).to(dtype) for name in names for span in vectors.spans(name)]
        magnitudes = torch.cat(tiles, dim=1).abs_()
        value = magnitudes.kthvalue(rank, dim=1).values
        return Order(value, (magnitudes < value[:, None]).sum(1))
    search = _Search(vectors, names, rank, total, dtype)
    search.guess(_read_blocks(vectors, names) if sample is None else sample.blocks)
    return search.run()


def sampled_blocks(sizes: Mapping[str, int]) -> dict[str, range]:
    """Where blocks of `BLOCK` entries, evenly spaced over tensors of these sizes, begin."""
    total = sum(sizes.values())
    wanted = min(max(total // 128, _SAMPLE[0]), _SAMPLE[1])
    step = max(BLOCK, total * BLOCK // wanted)
    blocks, offset = {}, 0
    for name, size in sizes.items():
        blocks[name] = range(-offset % step, size - BLOCK + 1, step)
        offset += size
    return blocks


def _read_blocks(vectors: TaskVectors, names: Sequence[str]) -> list[Tensor]:
    """Return some entries of every expert, as `sampled_blocks` takes them, [K, BLOCK] each."""
    starts = sampled_blocks({name: vectors.numel(name) for name in names})
    return [
        vectors.read(Span(name, start, start + BLOCK))
        for name, places in starts.items()
        for start in places
    ]


def kth_smallest(vectors: TaskVectors, names: Sequence[str], rank: int) -> Tensor:
    """Return the rank-th smallest entry of every expert, signs included, [K].

    The positive parts are ordered as the entries are; where theirs is zero, the negative parts,
    counted from the other end, say which entry it is. Arguments as of `kth_smallest_magnitude`.
    """
    positive = kth_smallest_magnitude(vectors.map(_positive_part), names, rank).value
    if bool((positive > 0).all()):
        return positive
    backwards = sum(vectors.numel(name) for name in names) + 1 - rank
    negative = kth_smallest_magnitude(vectors.map(_negative_part), names, backwards).value
    return positive - negative


def largest(vectors: TaskVectors, names: Sequence[str]) -> Tensor:
    """Return the largest signed entry of every expert over the named tensors, [K] in float64.

    Reads every tensor once; at least one has to have entries.
    """

    def of_tensor(name: str) -> Tensor:
        tops = [tile.amax(1) for _, _, tile in vectors.tiles(name)]
        return torch.stack(tops).amax(0).double()

    return torch.stack(vectors.each(filter(vectors.numel, names), of_tensor)).amax(0)


def _positive_part(span: Span, tile: Tensor) -> Tensor:
    return tile.relu_()


def _negative_part(span: Span, tile: Tensor) -> Tensor:
    return tile.neg_().relu_()


def _groups(vectors: TaskVectors, names: Sequence[str]) -> list[list[str]]:
    """Return the names in as many groups as there are jobs, of about as many entries each."""
    groups: list[list[str]] = [[] for _ in range(vectors.jobs)]
    sizes = [0] * vectors.jobs
    for name in sorted(names, key=vectors.numel, reverse=True):
        smallest = sizes.index(min(sizes))
        groups[smallest].append(name)
        sizes[smallest] += vectors.numel(name)
    return groups


class _Search:
    """Per expert, a range of bits [low, high) that narrows to the one value searched for."""

    def __init__(
        self,
        vectors: TaskVectors,
        names: Sequence[str],
        rank: int,
        total: int,
        dtype: torch.dtype,
    ) -> None:
        self.vectors, self.names, self.rank, self.total = vectors, names, rank, total
        self.dtype = dtype
        self.integer = np.dtype(np.int64 if dtype == torch.float64 else np.int32)
        experts = len(vectors)
        self.top = int(self._bits(torch.full((1, 1), torch.inf, dtype=dtype))[0, 0])
        self.low, self.high = [0] * experts, [self.top] * experts
        self.less = [0] * experts
        self.bins = max(2**16, _BINS // experts)

    def run(self) -> Order:
        """Narrow the ranges until each is one value."""
        self._narrow()
        while any(high - low > 1 for low, high in zip(self.low, self.high, strict=True)):
            self._narrow()
        value = torch.from_numpy(np.array(self.low, self.integer)).view(self.dtype)
        device = self.vectors.device
        return Order(value.to(device), torch.tensor(self.less, device=device))

    def _bits(self, tile: Tensor) -> np.ndarray:
        return tile.to(self.dtype).abs_().cpu().numpy().view(self.integer)

    def guess(self, blocks: Sequence[Tensor]) -> None:
        """Start from the ranks that evenly spaced blocks [K, n] make likely, if they are many."""
        if len(blocks) < 16:
            return
        bits = np.stack([self._bits(block) for block in blocks], axis=1)
        share = self.rank / self.total
        for k, row in enumerate(bits):  # [blocks, n]
            ordered = np.sort(row, axis=None)
            middle = ordered[int(share * (len(ordered) - 1))]
            below = (row < middle).mean(1)  # neighbours differ by chance, distant ones by kind
            error = np.sqrt(np.square(np.diff(below)).mean() / 2 / len(below))
            margin = 4 * error + 16 / len(ordered)
            ends = np.clip([share - margin, share + margin], 0, 1) * (len(ordered) - 1)
            self.low[k], self.high[k] = (int(v) for v in ordered[ends.astype(int)] + [0, 1])

    def _narrow(self) -> None:
        """One pass over the data, after which every range is one bin, or known to be wrong."""
        width = max(high - low for low, high in zip(self.low, self.high, strict=True))
        self.shift = max(0, (width - 1).bit_length() - (self.bins.bit_length() - 1))
        self.width = ((width - 1) >> self.shift) + 1
        tally, *others = self.vectors.each(_groups(self.vectors, self.names), self._count)
        for other in others:
            tally.add(other)
        if tally.counts is not None:
            tally.flush()
        for k in range(len(self.low)):
            filled = None if tally.counts is None else tally.counts[k].cumsum()
            self._settle(k, int(tally.below[k]), np.concatenate(tally.inside[k]), filled)

    def _count(self, names: list[str]) -> "_Tally":
        """Look at the entries of some tensors; the order of tensors changes nothing."""
        low, high = (np.array(ends, self.integer)[:, None] for ends in (self.low, self.high))
        tally = _Tally(low, self.shift, self.width)
        for name in names:
            for _, _, tile in self.vectors.tiles(name):
                bits = self._bits(tile)
                under = bits < low
                tally.take(under, bits, under ^ (bits < high))
        return tally

    def _settle(self, k: int, below: int, inside: np.ndarray, filled: np.ndarray | None) -> None:
        """Narrow the range of one expert by its entries inside, or their histogram's sums."""
        low, high, target = self.low[k], self.high[k], self.rank - below
        if target <= 0:
            self.low[k], self.high[k] = 0, low
        elif target > (len(inside) if filled is None else filled[-1]):
            self.low[k], self.high[k] = high, self.top
        elif filled is None:
            value = int(np.partition(inside, target - 1)[target - 1])
            self.less[k] = below + int(np.count_nonzero(inside < value))
            self.low[k], self.high[k] = value, value + 1
        else:
            place = int(np.searchsorted(filled, target))
            self.less[k] = below + (int(filled[place - 1]) if place else 0)
            self.low[k] = low + (place << self.shift)
            self.high[k] = min(self.low[k] + (1 << self.shift), high)


class _Tally:
    """What one pass has seen so far: entries below the ranges, and those inside them.

    The latter are kept as they are, and counted in a histogram when they get too many.
    """

    def __init__(self, low: np.ndarray, shift: int, width: int) -> None:
        self.low, self.shift, self.width = low, shift, width
        self.below = np.zeros(len(low), np.int64)
        self.inside = [[np.zeros(0, low.dtype)] for _ in low]
        self.waiting = 0
        self.counts: np.ndarray | None = None

    def take(self, under: np.ndarray, bits: np.ndarray, between: np.ndarray) -> None:
        """Take a tile of bits, given which are under and which inside the ranges, [K, n] each."""
        self.below += [np.count_nonzero(row) for row in under]
        sizes = [np.count_nonzero(row) for row in between]
        for part, entries in zip(
            self.inside, np.split(bits[between], np.cumsum(sizes)[:-1]), strict=True
        ):
            part.append(entries)
        self.waiting += sum(sizes)
        if self.waiting > _WAITING:
            self.flush()

    def flush(self) -> None:
        """Move the entries inside from memory to the histograms."""
        if self.counts is None:
            self.counts = np.zeros((len(self.low), self.width), np.int64)
        for row, low, parts in zip(self.counts, self.low, self.inside, strict=True):
            counts = np.bincount((np.concatenate(parts) - low) >> self.shift)
            row[: len(counts)] += counts
            parts[1:] = []
        self.waiting = 0

    def add(self, other: "_Tally") -> None:
        """Take what another pass over other tensors has seen."""
        self.below += other.below
        for part, entries in zip(self.inside, other.inside, strict=True):
            part += entries
        self.waiting += other.waiting
        if other.counts is not None:
            self.flush()
            if self.counts is None:
                self.counts = other.counts
            else:
                self.counts += other.counts
        elif self.waiting > _WAITING:
            self.flush()
