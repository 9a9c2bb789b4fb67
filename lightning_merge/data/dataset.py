"""Decoded images of one task, kept in memory as bytes when they fit."""

from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_merge.data.source import Examples
from lightning_merge.models.preprocess import Preprocess


class Batch(NamedTuple):
    """Images of one task.

    Attributes:
        images: uint8 [n, 3, s, s] from a loader, float once normalised on the device.
        labels: int64 [n].
        index: int64 [n], position within the split, so that pseudo labels can be looked up.
    """

    images: Tensor
    labels: Tensor
    index: Tensor


class TaskImages(Dataset[Batch]):
    """Chosen examples of a task; indexing with a list gives a collated batch.

    Args:
        examples: one split of a task.
        rows: int64 indices into it.
        preprocess: of the encoder; its uint8 part runs here, once per image when cached.
        cache: keep decoded images in memory.
    """

    def __init__(
        self, examples: Examples, rows: Tensor, preprocess: Preprocess, *, cache: bool
    ) -> None:
        self.examples, self.rows = examples, rows
        self.labels = examples.labels[rows]
        self.transform = preprocess.transform()
        self.side = preprocess.size
        self.cached: Tensor | None = None
        self.cache = cache

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_bytes(self) -> int:
        """Bytes that all decoded images take."""
        return len(self) * 3 * self.side**2

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: list[int]) -> Batch:
        index = torch.as_tensor(positions)
        if self.cache and self.cached is None:
            self.cached = torch.stack([self._decode(i) for i in range(len(self))])
        images = (
            torch.stack([self._decode(i) for i in positions])
            if self.cached is None
            else self.cached[index]
        )
        return Batch(images, self.labels[index], index)

    def _decode(self, position: int) -> Tensor:
        image: Image.Image = self.examples.image(int(self.rows[position]))
        return self.transform(image)


def already_collated(batch: Batch) -> Batch:
    """Return what TaskImages gives for a list of positions."""
    return batch


def loader(
    images: TaskImages, batch_size: int, *, shuffle: bool, num_workers: int, drop_last: bool = False
) -> DataLoader[Batch]:
    """Return a loader of Batch tuples; cached images need no worker processes."""
    workers = 0 if images.cache else num_workers
    return DataLoader(
        images,
        batch_size=min(batch_size, max(len(images), 1)),
        shuffle=shuffle,
        num_workers=workers,
        collate_fn=already_collated,
        drop_last=drop_last,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
