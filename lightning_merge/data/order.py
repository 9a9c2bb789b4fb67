"""The order of examples, their batches, and the share of them that each process takes."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler

from lightning_merge.core.ranks import ALONE, Ranks
from lightning_merge.core.seeding import generator_for
from lightning_merge.data.dataset import Batch, TaskInputs, Unlabelled
from lightning_merge.data.resume import START, Position

CHUNK = 16
"""Steps within which texts are sorted by their length."""


def bucketed(
    positions: Tensor, sizes: Tensor, unit: int, generator: torch.Generator | None = None
) -> Tensor:
    """Return positions in an order in which neighbours have similar sizes, so batches pad little.

    Positions are sorted by size within chunks of `CHUNK` units, so every chunk has short and long
    texts. With a generator, the units of a chunk are shuffled.

    Args:
        positions: Positions, int64 [n].
        sizes: Size of the text at every position.
        unit: Positions of one step, of all processes together.
        generator: Generator of the shuffle.

    Examples:
        >>> sizes = torch.tensor([9, 1, 8, 2, 5])
        >>> bucketed(torch.arange(5), sizes, unit=2).tolist()
        [1, 3, 4, 2, 0]
    """
    ordered: list[Tensor] = []
    for chunk in positions.split(CHUNK * unit):
        *whole, last = chunk[sizes[chunk].argsort(stable=True)].split(unit)
        units = [*whole, last] if len(last) == unit else whole
        if generator is not None:
            units = [units[i] for i in torch.randperm(len(units), generator=generator).tolist()]
        ordered += units if len(last) == unit else [*units, last]
    return torch.cat(ordered) if ordered else positions


class SeededOrder(Sampler[int]):
    """A shuffle of some positions that depends only on seed, name, epoch and round.

    Each iteration is a new round. Lightning calls `set_epoch`, so a resumed run sees its images
    in the order of an uninterrupted one, whatever else sampled random numbers.

    Args:
        positions: Positions to shuffle, int64 [n].
        seed: Seed of the run.
        name: Name of the task.
        sizes: Sizes of texts, by which neighbours should be alike, see `bucketed`.
        unit: Positions of one step.

    Examples:
        >>> one, other = (SeededOrder(torch.arange(100), 0, "pets") for _ in range(2))
        >>> first, second = list(one), list(one)
        >>> first == second, first == list(other), sorted(first) == list(range(100))
        (False, True, True)
    """

    def __init__(
        self,
        positions: Tensor,
        seed: int,
        name: str,
        sizes: Tensor | None = None,
        unit: int = 1,
    ) -> None:
        self.positions, self.seed, self.name = positions, seed, name
        self.sizes, self.unit = sizes, unit
        self.epoch = self.round = 0

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch at round 0, unless it is the current one."""
        if epoch != self.epoch:
            self.epoch, self.round = epoch, 0

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[int]:
        generator = generator_for(self.seed, self.name, str(self.epoch), str(self.round))
        self.round += 1
        order = self.positions[torch.randperm(len(self.positions), generator=generator)]
        if self.sizes is not None:
            order = bucketed(order, self.sizes, self.unit, generator)
        yield from order.tolist()


class Shares(DistributedSampler[list[int]]):
    """Batches of one of N processes: batch j of an order goes to process j modulo N.

    So a step of N processes sees what one process would see with batches N times as large, and a
    pass over all batches has exactly the batches of a single process, so its results are equal to
    the bit. The class derives from DistributedSampler only because Lightning would replace any
    other sampler by one that repeats images.

    Args:
        order: All positions, in their order.
        batch_size: Positions per batch.
        ranks: The processes.
        drop_last: Drop the batches that do not go round. Otherwise every position occurs once, and
            processes without a batch left get an empty one, so that all take as many steps.

    Examples:
        >>> [list(Shares(range(5), 2, Ranks(rank, 2), drop_last=False)) for rank in range(2)]
        [[[0, 1], [4]], [[2, 3], []]]
    """

    def __init__(
        self, order: Sampler[int] | Sequence[int], batch_size: int, ranks: Ranks, *, drop_last: bool
    ) -> None:
        super().__init__(
            range(len(order)),  # type: ignore[arg-type]
            ranks.size,
            ranks.rank,
            shuffle=False,
            drop_last=drop_last,
        )
        self.order = order
        self.batches = BatchSampler(order, batch_size, drop_last)
        self._taken = 0

    def __len__(self) -> int:
        total, processes = len(self.batches), self.num_replicas
        return total // processes if self.drop_last else -(-total // processes)

    def __iter__(self) -> Iterator[list[int]]:
        taken, self._taken = self._taken, 0
        own = islice(self.batches, self.rank, None, self.num_replicas)
        own = islice(own, taken, None)
        for _ in range(len(self) - taken):
            yield next(own, [])

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch of the order, unless it is the current one."""
        if isinstance(self.order, SeededOrder):
            self.order.set_epoch(epoch)

    def go_on(self, position: Position) -> None:
        """Skip, in the next iteration, the batches of the epoch that were already taken."""
        self.set_epoch(position.epoch)
        rounds, self._taken = divmod(position.taken, max(1, len(self)))
        if isinstance(self.order, SeededOrder):
            self.order.round = rounds


def _already_collated(batch: Any) -> Any:
    """Return the batch that TaskInputs made for a list of positions."""
    return batch


def loader(
    inputs: TaskInputs | Unlabelled,
    batch_size: int,
    *,
    num_workers: int,
    order: Sampler[int] | None = None,
    drop_last: bool = False,
    ranks: Ranks = ALONE,
    position: Position = START,
) -> DataLoader[Batch]:
    """Return a loader of Batch tuples; examples kept in memory need no worker processes.

    Args:
        inputs: Examples to load.
        batch_size: Examples per batch.
        num_workers: Processes that decode examples which are not kept in memory.
        order: Order of the positions; ascending if None, and for texts as `bucketed` returns it.
        drop_last: Drop what is not a full batch for every process.
        ranks: Processes that share the examples, see `Shares`.
        position: Where to start.

    Examples:
        >>> import numpy as np
        >>> from lightning_merge.data.examples import array_examples
        >>> from lightning_merge.models import ImagePreprocess
        >>> pets = array_examples(["cat", "dog"], [0, 1, 1], np.zeros((3, 8, 8), np.uint8))
        >>> preprocess = ImagePreprocess(size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> images = TaskInputs(pets, torch.arange(3), preprocess, cache=True)
        >>> [batch.labels.tolist() for batch in loader(images, 2, num_workers=0)]
        [[0, 1], [1]]
    """
    workers = 0 if inputs.cache else num_workers
    positions: Sampler[int] | Sequence[int] = order or range(len(inputs))
    if order is None and inputs.sizes is not None:
        positions = bucketed(torch.arange(len(inputs)), inputs.sizes, batch_size).tolist()
    shares = Shares(positions, batch_size, ranks, drop_last=drop_last)
    shares.go_on(position)
    return DataLoader(
        inputs,
        batch_size=None,  # an item of the sampler is a batch
        sampler=shares,
        num_workers=workers,
        collate_fn=_already_collated,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
