"""Decoded images of one task, kept in memory as bytes when they fit."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, Sampler

from lightning_merge.core.progress import tracked
from lightning_merge.core.ranks import ALONE, Ranks
from lightning_merge.core.seeding import generator_for
from lightning_merge.data.corrupt import Corruption
from lightning_merge.data.examples import Examples
from lightning_merge.data.image_cache import DecodedImages, ImageCache, image_key
from lightning_merge.data.resume import START, Position
from lightning_merge.models.preprocess import Preprocess


class Batch(NamedTuple):
    """Images of one task.

    Attributes:
        images: Pixels [n, 3, s, s]: uint8 from a loader, float once normalised on the device.
        labels: Classes, int64 [n].
        index: Positions in the part, int64 [n], to look up pseudo labels; they count within the
            whole part even if only some of its images are fitted on.

    Examples:
        >>> batch = Batch(torch.zeros(2, 3, 8, 8), torch.tensor([1, 0]), torch.tensor([4, 7]))
        >>> pseudo_labels = torch.zeros(10, dtype=torch.long)
        >>> batch._replace(labels=pseudo_labels[batch.index]).labels
        tensor([0, 0])
    """

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class TaskImages(Dataset[Batch]):
    """Selected examples of a task; indexing with one position or several returns a batch.

    Args:
        examples: One split of a task.
        rows: Indices into the split, int64 [n].
        preprocess: The encoder's; its uint8 part runs here, once per image if cached.
        cache: Keep decoded images in memory.
        name: Label of the progress bar.
        disk: Where decoded images that are kept are also stored, for other runs.
        hashes: A digest of each selected image, to find it there.

    Attributes:
        labels: Classes, int64 [n].
        num_bytes: Bytes that all decoded images take.
        decoded: The images kept in memory; None before the first is asked for.

    Examples:
        >>> import numpy as np
        >>> from lightning_merge.data.examples import array_examples
        >>> pets = array_examples(["cat", "dog"], [0, 1, 1], np.zeros((3, 8, 8), np.uint8))
        >>> preprocess = Preprocess(size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> images = TaskImages(pets, torch.tensor([2, 0]), preprocess, cache=True)
        >>> images[[0, 1]].labels, images.num_bytes
        (tensor([1, 0]), 96)
    """

    def __init__(
        self,
        examples: Examples,
        rows: Tensor,
        preprocess: Preprocess,
        *,
        cache: bool,
        name: str = "images",
        disk: ImageCache | None = None,
        hashes: Sequence[str] = (),
    ) -> None:
        self.examples, self.rows, self.cache, self.name = examples, rows, cache, name
        self.labels = examples.labels[rows]
        self.preprocess, self.transform = preprocess, preprocess.transform()
        self.shape = (3, preprocess.size, preprocess.size)
        self.num_bytes = len(rows) * 3 * preprocess.size**2
        self.disk, self.hashes = disk, hashes
        self.decoded: DecodedImages | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int | list[int]) -> Batch:
        return self.__getitems__(position if isinstance(position, list) else [position])

    def __getitems__(self, positions: list[int]) -> Batch:
        """Return the images at some positions, or at none, as one batch."""
        index = torch.as_tensor(positions, dtype=torch.long)
        if self.cache:
            return Batch(self._remember(index).images[index], self.labels[index], index)
        images = torch.empty(len(index), *self.shape, dtype=torch.uint8)
        for image, position in zip(images, positions, strict=True):
            image.copy_(self._decode(position))
        return Batch(images, self.labels[index], index)

    def batches(self, size: int, what: str) -> Iterator[Batch]:
        """Yield all images in order and show the progress.

        Args:
            size: Images per batch; the last batch may be smaller.
            what: What is done to the images, see `tracked`.
        """
        for start in tracked(range(0, len(self), size), what):
            yield self.__getitems__([*range(start, min(start + size, len(self)))])

    def file(self, position: int) -> str:
        """Return the file of an image relative to the task's folder, "" if it has none."""
        return self.examples.file(int(self.rows[position]))

    def prepare(self, positions: Iterable[int] | None = None) -> None:
        """Decode the images that are kept in memory, so that a broken one is found early.

        Args:
            positions: Positions of the images to decode; all if None.

        Raises:
            InputError: An image cannot be decoded; the message names it.
        """
        if self.cache:
            chosen = range(len(self)) if positions is None else positions
            self._remember(torch.tensor([*chosen], dtype=torch.long)).keep()

    def _remember(self, index: Tensor) -> DecodedImages:
        if (decoded := self.decoded) is None:
            key = "" if self.disk is None else image_key(self.hashes, self.preprocess)
            self.decoded = decoded = DecodedImages(len(self), self.shape, self.disk, key)
        lacking = index[~decoded.done[index]].unique().tolist()
        for position in tracked(lacking, f"decoding {self.name}"):
            decoded.put(position, self._decode(position))
        if lacking and decoded.done.all():
            decoded.keep()
        return decoded

    def _decode(self, position: int) -> Tensor:
        return self.transform(self.examples.image(int(self.rows[position])))


class CorruptedImages(TaskImages):
    """Images of a part, corrupted after the preprocessing and kept in memory only.

    An image is corrupted alike in every run, process and batch: the random numbers depend on its
    content, the task and the kind of corruption. All severities of an image share them.

    Args:
        clean: The images.
        corruption: What to do to them.
        task: Name of the task.
        hashes: A digest of each image.

    Examples:
        >>> import numpy as np
        >>> from lightning_merge.data.examples import array_examples
        >>> grey = array_examples(["cat"], [0], np.full((1, 8, 8), 128, np.uint8))
        >>> preprocess = Preprocess(size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> clean = TaskImages(grey, torch.arange(1), preprocess, cache=True)
        >>> noisy = CorruptedImages(clean, Corruption("gaussian_noise", 5), "cats", ["c0ffee"])
        >>> bool((noisy[0].images == noisy[[0]].images).all()), noisy[0].images.unique().numel() > 9
        (True, True)
    """

    def __init__(
        self, clean: TaskImages, corruption: Corruption, task: str, hashes: Sequence[str]
    ) -> None:
        super().__init__(clean.examples, clean.rows, clean.preprocess, cache=False, name=clean.name)
        self.clean, self.corruption, self.task, self.hashes = clean, corruption, task, hashes
        self.num_bytes = 2 * clean.num_bytes

    def prepare(self, positions: Iterable[int] | None = None) -> None:
        """Decode and corrupt the images that are kept in memory; see `TaskImages.prepare`."""
        chosen = [*(range(len(self)) if positions is None else positions)]
        self.clean.prepare(chosen)
        super().prepare(chosen)

    def _decode(self, position: int) -> Tensor:
        names = (self.task, self.hashes[position])
        return self.corruption.apply(self.clean[position].images[0], names)


class Unlabelled(Dataset[Batch]):
    """The same images at the same positions, with -1 for every label.

    Args:
        images: Images whose labels to hide; decoded images are shared, not copied.

    Examples:
        >>> import numpy as np
        >>> from lightning_merge.data.examples import array_examples
        >>> pets = array_examples(["cat", "dog"], [0, 1], np.zeros((2, 8, 8), np.uint8))
        >>> preprocess = Preprocess(size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> Unlabelled(TaskImages(pets, torch.arange(2), preprocess, cache=True))[1].labels
        tensor([-1])
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
    """A shuffle of some positions that depends only on seed, name, epoch and round.

    Each iteration is a new round. Lightning calls `set_epoch`, so a resumed run sees its images
    in the order of an uninterrupted one, whatever else sampled random numbers.

    Args:
        positions: Positions to shuffle, int64 [n].
        seed: Seed of the run.
        name: Name of the task.

    Examples:
        >>> one, other = (SeededOrder(torch.arange(100), 0, "pets") for _ in range(2))
        >>> first, second = list(one), list(one)
        >>> first == second, first == list(other), sorted(first) == list(range(100))
        (False, True, True)
    """

    def __init__(self, positions: Tensor, seed: int, name: str) -> None:
        self.positions, self.seed, self.name = positions, seed, name
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
        order = torch.randperm(len(self.positions), generator=generator)
        yield from self.positions[order].tolist()


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
    """Return the batch that TaskImages made for a list of positions."""
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
        images: Images to load.
        batch_size: Images per batch.
        num_workers: Processes that decode images which are not kept in memory.
        order: Order of the positions; ascending if None.
        drop_last: Drop what is not a full batch for every process.
        ranks: Processes that share the images, see `Shares`.
        position: Where to start.

    Examples:
        >>> import numpy as np
        >>> from lightning_merge.data.examples import array_examples
        >>> pets = array_examples(["cat", "dog"], [0, 1, 1], np.zeros((3, 8, 8), np.uint8))
        >>> preprocess = Preprocess(size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> images = TaskImages(pets, torch.arange(3), preprocess, cache=True)
        >>> [batch.labels.tolist() for batch in loader(images, 2, num_workers=0)]
        [[0, 1], [1]]
    """
    workers = 0 if images.cache else num_workers
    shares = Shares(order or range(len(images)), batch_size, ranks, drop_last=drop_last)
    shares.go_on(position)
    return DataLoader(
        images,
        batch_size=None,  # an item of the sampler is a batch
        sampler=shares,
        num_workers=workers,
        collate_fn=_already_collated,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
