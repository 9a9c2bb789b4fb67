"""Exact order statistics of magnitudes that are never in memory together."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_merge.core.dtypes import wide_dtype
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.tiles import Span

_SMALL = 2**15  # entries per expert that are read whole and partitioned
_BINS = 2**21  # in all histograms together: 16 MiB
_WAITING = 2**21  # entries in memory before they are counted in a histogram: 8 MiB
BLOCK = 256
"""Number of consecutive entries that are sampled together."""
_SAMPLE = (2**13, 2**18)  # entries per expert, at least and at most


class Order(NamedTuple):
    """The rank-th smallest magnitude of every expert.

    Attributes:
        value: The magnitude, [K].
        less: How many magnitudes are smaller, int64 [K]; rank - 1 unless several are equal.

    Examples:
        >>> base, expert = {"w": torch.zeros(4)}, {"w": torch.tensor([3.0, -1.0, 1.0, 2.0])}
        >>> kth_smallest_magnitude(TaskVectors(base, {"mnist": expert}), ["w"], rank=2)
        Order(value=tensor([1.]), less=tensor([0]))
    """

    value: Tensor
    less: Tensor


class Sample(NamedTuple):
    """Some entries that are known before the search begins.

    Attributes:
        total: Number of entries of each expert.
        blocks: Blocks at the positions of `sampled_blocks`, [K, BLOCK] each.

    Examples:
        >>> Sample(total=10**6, blocks=[torch.zeros(2, BLOCK)]).blocks[0].shape
        torch.Size([2, 256])
    """

    total: int
    blocks: Sequence[Tensor]


def kth_smallest_magnitude(
    vectors: TaskVectors, names: Sequence[str], rank: int, sample: Sample | None = None
) -> Order:
    """Return the rank-th smallest |entry| of every expert over all named tensors.

    Read as integers, the bits of magnitudes have the order of the magnitudes. A sample gives a
    narrow range of bits. One pass counts the entries below the range and keeps those inside it
    or, if there are too many, their histogram. Another pass follows if the range proves wrong or
    a bin holds several values. The result is exact, memory is bounded, and the data are usually
    read once.

    Args:
        vectors: Task vectors, read in tiles.
        names: Tensors that are ranked together.
        rank: 1 for the smallest, up to the number of entries.
        sample: Needed where maps work on whole tensors or change the number of their entries;
            read from the tensors by default.

    Examples:
        >>> base, expert = {"w": torch.zeros(4)}, {"w": torch.tensor([3.0, -4.0, 1.0, 2.0])}
        >>> vectors = TaskVectors(base, {"mnist": expert})
        >>> kth_smallest_magnitude(vectors, vectors.names, rank=4).value
        tensor([4.])
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
    """Return where blocks of `BLOCK` entries, evenly spaced over tensors of these sizes, begin.

    Examples:
        >>> sampled_blocks({"weight": 5000})  # 0, 256, ..., 4608
        {'weight': range(0, 4745, 256)}
    """
    total = sum(sizes.values())
    wanted = min(max(total // 128, _SAMPLE[0]), _SAMPLE[1])
    step = max(BLOCK, total * BLOCK // wanted)
    blocks, offset = {}, 0
    for name, size in sizes.items():
        blocks[name] = range(-offset % step, size - BLOCK + 1, step)
        offset += size
    return blocks


def _read_blocks(vectors: TaskVectors, names: Sequence[str]) -> list[Tensor]:
    """Return entries of every expert at the positions of `sampled_blocks`, [K, BLOCK] each."""
    starts = sampled_blocks({name: vectors.numel(name) for name in names})
    return [
        vectors.read(Span(name, start, start + BLOCK))
        for name, places in starts.items()
        for start in places
    ]


def kth_smallest(vectors: TaskVectors, names: Sequence[str], rank: int) -> Tensor:
    """Return the rank-th smallest entry of every expert, signs included, [K].

    The positive parts have the order of the entries. Where the rank-th positive part is zero, the
    negative parts are ranked from the other end. Args as for `kth_smallest_magnitude`.

    Examples:
        >>> base, expert = {"w": torch.zeros(4)}, {"w": torch.tensor([3.0, -4.0, 1.0, 2.0])}
        >>> kth_smallest(TaskVectors(base, {"mnist": expert}), ["w"], rank=1)
        tensor([-4.])
    """
    positive = kth_smallest_magnitude(vectors.map(_positive_part), names, rank).value
    if bool((positive > 0).all()):
        return positive
    backwards = sum(vectors.numel(name) for name in names) + 1 - rank
    negative = kth_smallest_magnitude(vectors.map(_negative_part), names, backwards).value
    return positive - negative


def largest(vectors: TaskVectors, names: Sequence[str]) -> Tensor:
    """Return the largest signed entry of every expert over the named tensors, [K] in float64.

    Reads every tensor once. At least one tensor must not be empty.

    Examples:
        >>> base, expert = {"w": torch.zeros(3)}, {"w": torch.tensor([3.0, -4.0, 1.0])}
        >>> largest(TaskVectors(base, {"mnist": expert}), ["w"])
        tensor([3.], dtype=torch.float64)
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
    """Divide the names into as many groups as there are jobs, of similar numbers of entries."""
    groups: list[list[str]] = [[] for _ in range(vectors.jobs)]
    sizes = [0] * vectors.jobs
    for name in sorted(names, key=vectors.numel, reverse=True):
        smallest = sizes.index(min(sizes))
        groups[smallest].append(name)
        sizes[smallest] += vectors.numel(name)
    return groups


class _Search:
    """Per expert, a range of bits [low, high) that narrows to the value searched for."""

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
        """Start from the ranges that evenly spaced blocks [K, n] suggest, if there are enough."""
        if len(blocks) < 16:
            return
        bits = np.stack([self._bits(block) for block in blocks], axis=1)
        share = self.rank / self.total
        for k, row in enumerate(bits):  # [blocks, n]
            ordered = np.sort(row, axis=None)
            middle = ordered[int(share * (len(ordered) - 1))]
            below = (row < middle).mean(
                1
            )  # neighbours differ by chance, distant blocks in distribution
            error = np.sqrt(np.square(np.diff(below)).mean() / 2 / len(below))
            margin = 4 * error + 16 / len(ordered)
            ends = np.clip([share - margin, share + margin], 0, 1) * (len(ordered) - 1)
            self.low[k], self.high[k] = (int(v) for v in ordered[ends.astype(int)] + [0, 1])

    def _narrow(self) -> None:
        """Make one pass, after which every range is one bin or is known to be wrong."""
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
        """Count the entries of some tensors; the order of tensors does not matter."""
        low, high = (np.array(ends, self.integer)[:, None] for ends in (self.low, self.high))
        tally = _Tally(low, self.shift, self.width)
        for name in names:
            for _, _, tile in self.vectors.tiles(name):
                bits = self._bits(tile)
                under = bits < low
                tally.take(under, bits, under ^ (bits < high))
        return tally

    def _settle(self, k: int, below: int, inside: np.ndarray, filled: np.ndarray | None) -> None:
        """Narrow one expert's range by its entries inside, or by their histogram's running sums."""
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
    """Entries that one pass has seen: the number below the ranges, and those inside them.

    The latter are kept as they are until there are too many, then counted in a histogram.
    """

    def __init__(self, low: np.ndarray, shift: int, width: int) -> None:
        self.low, self.shift, self.width = low, shift, width
        self.below = np.zeros(len(low), np.int64)
        self.inside = [[np.zeros(0, low.dtype)] for _ in low]
        self.waiting = 0
        self.counts: np.ndarray | None = None

    def take(self, under: np.ndarray, bits: np.ndarray, between: np.ndarray) -> None:
        """Add a tile of bits, given which are below and which inside the ranges, [K, n] each."""
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
        """Add the entries that another pass has seen in other tensors."""
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
