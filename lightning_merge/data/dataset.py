"""Decoded images of one task, kept in memory as bytes when they fit."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_merge.core.seeding import generator_for
from lightning_merge.data.examples import Examples
from lightning_merge.data.progress import progress
from lightning_merge.models.preprocess import Preprocess


class Batch(NamedTuple):
    """Images of one task.

    Attributes:
        images: uint8 [n, 3, s, s] from a loader, float once normalised on the device.
        labels: int64 [n].
        index: int64 [n], position within the part, so that pseudo labels can be looked up.
    """

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class TaskImages(Dataset[Batch]):
    """Chosen examples of a task; an index gives a batch of one, `__getitems__` a batch.

    Args:
        examples: one split of a task.
        rows: int64 indices into it.
        preprocess: of the encoder; its uint8 part runs here, once per image when cached.
        cache: keep decoded images in memory.
        name: for the progress shown.

    Attributes:
        labels: int64 [n].
        num_bytes: bytes that all decoded images take.
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

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: list[int]) -> Batch:
        """Return the images at some positions as one batch."""
        index = torch.as_tensor(positions, dtype=torch.long)
        if not self.cache:
            images = torch.stack([self._decode(position) for position in index.tolist()])
            return Batch(images, self.labels[index], index)
        return Batch(self._remember(index)[index], self.labels[index], index)

    def prepare(self) -> None:
        """Decode what is kept in memory, so that a broken image shows before long work.

        Raises:
            InputError: an image cannot be decoded; the message names it.
        """
        if self.cache:
            self._remember(torch.arange(len(self)))

    def _remember(self, index: Tensor) -> Tensor:
        if self._decoded is None:
            self._decoded = torch.empty(len(self), *self.shape, dtype=torch.uint8)
        lacking = index[~self._done[index]].unique().tolist()
        for position in progress(lacking, f"decoding {self.name}"):
            self._decoded[position] = self._decode(position)
            self._done[position] = True
        return self._decoded

    def _decode(self, position: int) -> Tensor:
        return self.transform(self.examples.image(int(self.rows[position])))


class SeededOrder(Sampler[int]):
    """A new order of all positions every round, from a seed, a name, the epoch and the round.

    Lightning calls `set_epoch`, so a resumed run sees its images in the order it would have
    seen them without the break, whatever else drew random numbers.

    Args:
        size: number of positions.
        seed: of the run.
        name: of the task.
    """

    def __init__(self, size: int, seed: int, name: str) -> None:
        self.size, self.seed, self.name = size, seed, name
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch; rounds within it are counted."""
        self.epoch, self.round = epoch, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = generator_for(self.seed, self.name, str(self.epoch), str(self.round))
        self.round += 1
        yield from torch.randperm(self.size, generator=generator).tolist()


def already_collated(batch: Any) -> Any:
    """Return what TaskImages gives for a list of positions."""
    return batch


def loader(
    images: TaskImages,
    batch_size: int,
    *,
    num_workers: int,
    order: Sampler[int] | None = None,
    drop_last: bool = False,
) -> DataLoader[Batch]:
    """Return a loader of Batch tuples; images kept in memory need no worker processes.

    Args:
        images: what to load.
        batch_size: images per batch.
        num_workers: processes that decode images which are not kept in memory.
        order: of the positions; theirs without.
        drop_last: leave out a last batch that is not full.
    """
    workers = 0 if images.cache else num_workers
    return DataLoader(
        images,
        batch_size=min(batch_size, len(images)),
        sampler=order,
        num_workers=workers,
        collate_fn=already_collated,
        drop_last=drop_last,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
