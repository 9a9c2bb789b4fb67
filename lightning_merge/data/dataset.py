"""Decoded images of one task, kept in memory as bytes when they fit."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, Sampler

from lightning_merge.core.progress import tracked
from lightning_merge.core.ranks import ALONE, Ranks
from lightning_merge.core.seeding import generator_for
from lightning_merge.data.examples import Examples
from lightning_merge.data.resume import START, Position
from lightning_merge.models.preprocess import Preprocess


class Batch(NamedTuple):
    """Images of one task.

    Attributes:
        images: uint8 [n, 3, s, s] from a loader, float once normalised on the device.
        labels: int64 [n].
        index: int64 [n], position within the part, so that pseudo labels can be looked up;
            the part is the whole one where only some of its positions are fitted on.
    """

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class TaskImages(Dataset[Batch]):
    """Chosen examples of a task; a position gives a batch of one, several give theirs.

    Args:
        examples: One split of a task.
        rows: int64 indices into it.
        preprocess: Of the encoder; its uint8 part runs here, once per image when cached.
        cache: Keep decoded images in memory.
        name: For the progress shown.

    Attributes:
        labels: int64 [n].
        num_bytes: Bytes that all decoded images take.
    """

    def __init__(
        self,
        examples: Examples,
        rows: Tensor,
        preprocess: Preprocess,
        *,
        cache: bool,
        name: str = "images",
    ) -> None:
        self.examples, self.rows, self.cache, self.name = examples, rows, cache, name
        self.labels = examples.labels[rows]
        self.transform = preprocess.transform()
        self.shape = (3, preprocess.size, preprocess.size)
        self.num_bytes = len(rows) * 3 * preprocess.size**2
        self._decoded: Tensor | None = None
        self._done = torch.zeros(len(rows), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int | list[int]) -> Batch:
        return self.__getitems__(position if isinstance(position, list) else [position])

    def __getitems__(self, positions: list[int]) -> Batch:
        """Return the images at some positions, or at none, as one batch."""
        index = torch.as_tensor(positions, dtype=torch.long)
        if self.cache:
            return Batch(self._remember(index)[index], self.labels[index], index)
        images = torch.empty(len(index), *self.shape, dtype=torch.uint8)
        for image, position in zip(images, positions, strict=True):
            image.copy_(self._decode(position))
        return Batch(images, self.labels[index], index)

    def batches(self, size: int, what: str) -> Iterator[Batch]:
        """Yield all images in order, and show how many are done.

        Args:
            size: Images of a batch; the last has the rest.
            what: Is done to them, see `tracked`.
        """
        for start in tracked(range(0, len(self), size), what):
            yield self.__getitems__([*range(start, min(start + size, len(self)))])

    def file(self, position: int) -> str:
        """Return the file of an image from the task's folder on, "" where it has none."""
        return self.examples.file(int(self.rows[position]))

    def prepare(self, positions: Iterable[int] | None = None) -> None:
        """Decode what is kept in memory, so that a broken image shows before long work.

        Args:
            positions: Of the images to decode; all without.

        Raises:
            InputError: An image cannot be decoded; the message names it.
        """
        if self.cache:
            chosen = range(len(self)) if positions is None else positions
            self._remember(torch.tensor([*chosen], dtype=torch.long))

    def _remember(self, index: Tensor) -> Tensor:
        if self._decoded is None:
            self._decoded = torch.empty(len(self), *self.shape, dtype=torch.uint8)
        lacking = index[~self._done[index]].unique().tolist()
        for position in tracked(lacking, f"decoding {self.name}"):
            self._decoded[position] = self._decode(position)
            self._done[position] = True
        return self._decoded

    def _decode(self, position: int) -> Tensor:
        return self.transform(self.examples.image(int(self.rows[position])))


class Unlabelled(Dataset[Batch]):
    """The same images at the same positions, with -1 for every label.

    Args:
        images: Whose labels nobody is to see; what they keep in memory serves both.
    """

    def __init__(self, images: TaskImages) -> None:
        self._images = images

    @property
    def cache(self) -> bool:
        """Whether decoded images are kept in memory."""
        return self._images.cache

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, position: int | list[int]) -> Batch:
        batch = self._images[position]
        return batch._replace(labels=torch.full_like(batch.labels, -1))


class SeededOrder(Sampler[int]):
    """A new order of some positions every round, from a seed, a name, the epoch and the round.

    Lightning calls `set_epoch`, so a resumed run sees its images in the order it would have
    seen them without the break, whatever else drew random numbers.

    Args:
        positions: int64 [n], what is put in order.
        seed: Of the run.
        name: Of the task.
    """

    def __init__(self, positions: Tensor, seed: int, name: str) -> None:
        self.positions, self.seed, self.name = positions, seed, name
        self.epoch = self.round = 0

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch, unless it is the one that runs; rounds within it are counted."""
        if epoch != self.epoch:
            self.epoch, self.round = epoch, 0

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[int]:
        generator = generator_for(self.seed, self.name, str(self.epoch), str(self.round))
        self.round += 1
        order = torch.randperm(len(self.positions), generator=generator)
        yield from self.positions[order].tolist()


class Shares(DistributedSampler[list[int]]):
    """Batches of one process: batch j of an order belongs to process j modulo their number.

    So N processes that take a batch each see, step by step, what one process would see with
    batches N times as large; and a pass over all batches has the very batches of a single
    process, whose results it repeats to the bit. It is a DistributedSampler in name, because
    Lightning would replace any other by one that repeats images.

    Args:
        order: Of all positions.
        batch_size: Positions per batch.
        ranks: The processes.
        drop_last: Leave out what does not fill a batch of every process. Otherwise every
            position occurs once, and processes whose batches have run out get an empty one, so
            that all take as many steps.
    """

    def __init__(
        self, order: Sampler[int] | range, batch_size: int, ranks: Ranks, *, drop_last: bool
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
        """Start an epoch of the order, unless it is the one that runs."""
        if isinstance(self.order, SeededOrder):
            self.order.set_epoch(epoch)

    def go_on(self, position: Position) -> None:
        """Leave out what was taken of an epoch, round by round, when iteration begins."""
        self.set_epoch(position.epoch)
        rounds, self._taken = divmod(position.taken, max(1, len(self)))
        if isinstance(self.order, SeededOrder):
            self.order.round = rounds


def already_collated(batch: Any) -> Any:
    """Return what TaskImages gives for a list of positions."""
    return batch


def loader(
    images: TaskImages | Unlabelled,
    batch_size: int,
    *,
    num_workers: int,
    order: Sampler[int] | None = None,
    drop_last: bool = False,
    ranks: Ranks = ALONE,
    position: Position = START,
) -> DataLoader[Batch]:
    """Return a loader of Batch tuples; images kept in memory need no worker processes.

    Args:
        images: What to load.
        batch_size: Images per batch.
        num_workers: Processes that decode images which are not kept in memory.
        order: Of the positions; theirs without.
        drop_last: Leave out what is not a full batch for every process.
        ranks: The processes that share the images, see `Shares`.
        position: Where to start.
    """
    workers = 0 if images.cache else num_workers
    shares = Shares(order or range(len(images)), batch_size, ranks, drop_last=drop_last)
    shares.go_on(position)
    return DataLoader(
        images,
        batch_size=None,  # an item of the sampler is a batch
        sampler=shares,
        num_workers=workers,
        collate_fn=already_collated,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
