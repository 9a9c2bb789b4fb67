"""Transformed examples of one task, kept in memory when they fit."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_merge.core.progress import tracked
from lightning_merge.data.corrupt import Corruption
from lightning_merge.data.examples import Examples
from lightning_merge.data.image_cache import Decoded, ImageCache, image_key
from lightning_merge.data.splits import draw_evenly
from lightning_merge.models.preprocess import Preprocess


class Batch(NamedTuple):
    """Examples of one task.

    Attributes:
        inputs: One row per example, [n, ...]: from a loader as `Preprocess.transform` makes them,
            on the device as `Preprocess.finish` does (images: uint8, then normalised floats).
        labels: Classes, int64 [n].
        index: Positions in the part, int64 [n], to look up pseudo labels; they count within the
            whole part even if only some of its examples are fitted on.

    Examples:
        >>> batch = Batch(torch.zeros(2, 3, 8, 8), torch.tensor([1, 0]), torch.tensor([4, 7]))
        >>> pseudo_labels = torch.zeros(10, dtype=torch.long)
        >>> batch._replace(labels=pseudo_labels[batch.index]).labels
        tensor([0, 0])
    """

    inputs: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class TaskInputs(Dataset[Batch]):
    """Selected examples of a task; indexing with one position or several returns a batch.

    Args:
        examples: One split of a task.
        rows: Indices into the split, int64 [n].
        preprocess: The encoder's; its `transform` runs here, once per example if cached.
        cache: Keep transformed examples in memory.
        name: Label of the progress bar.
        disk: Where examples that are kept are also stored, for other runs.
        hashes: A digest of each selected example, to find it there.

    Attributes:
        labels: Classes, int64 [n].
        num_bytes: Bytes that all transformed examples take.
        decoded: The examples kept in memory; None before the first is asked for.

    Examples:
        >>> import numpy as np
        >>> from lightning_merge.data.examples import array_examples
        >>> from lightning_merge.models import ImagePreprocess
        >>> pets = array_examples(["cat", "dog"], [0, 1, 1], np.zeros((3, 8, 8), np.uint8))
        >>> preprocess = ImagePreprocess(size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> images = TaskInputs(pets, torch.tensor([2, 0]), preprocess, cache=True)
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
        self.shape = preprocess.shape(examples.parts, examples.answers)
        self.num_bytes = len(rows) * math.prod(self.shape) * preprocess.dtype.itemsize
        self.disk, self.hashes = disk, hashes
        self.decoded: Decoded | None = None

    @cached_property
    def sizes(self) -> Tensor | None:
        """Bytes of each text, int64 [n], whose order is about that of the tokens; None for images.

        They do not depend on the tokenizer, so all encoders get the same batches.
        """
        if self.examples.kind == "images":
            return None
        return torch.tensor([len(self.examples.content(row)) for row in self.rows.tolist()])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int | list[int]) -> Batch:
        return self.__getitems__(position if isinstance(position, list) else [position])

    def __getitems__(self, positions: list[int]) -> Batch:
        """Return the examples at some positions, or at none, as one batch."""
        index = torch.as_tensor(positions, dtype=torch.long)
        (inputs,) = self.preprocess.trim(self.rows_at(index))
        return Batch(inputs, self.labels[index], index)

    def rows_at(self, index: Tensor) -> Tensor:
        """Return the transformed examples at some positions, all of the same shape.

        Args:
            index: Positions, int64 [n].
        """
        if self.cache:
            return self._remember(index).inputs[index]
        inputs = torch.empty(len(index), *self.shape, dtype=self.preprocess.dtype)
        for row, position in zip(inputs, index.tolist(), strict=True):
            row.copy_(self._decode(position))
        return inputs

    def batches(self, size: int, what: str) -> Iterator[Batch]:
        """Yield all examples, images in order and texts by length, and show the progress.

        Args:
            size: Examples per batch; the last batch may be smaller.
            what: What is done to them, see `tracked`.
        """
        order = range(len(self)) if self.sizes is None else self.sizes.argsort(stable=True).tolist()
        for start in tracked(range(0, len(self), size), what):
            yield self.__getitems__([*order[start : start + size]])

    def file(self, position: int) -> str:
        """Return the file of an example relative to the task's folder, "" if it has none."""
        return self.examples.file(int(self.rows[position]))

    def prepare(self, positions: Iterable[int] | None = None) -> None:
        """Transform the examples that are kept in memory, so that a broken one is found early.

        Args:
            positions: Their positions; all if None.

        Raises:
            InputError: An example cannot be decoded; the message names it.
        """
        if self.cache:
            chosen = range(len(self)) if positions is None else positions
            self._remember(torch.tensor([*chosen], dtype=torch.long)).keep()

    def _remember(self, index: Tensor) -> Decoded:
        if (decoded := self.decoded) is None:
            key = "" if self.disk is None else image_key(self.hashes, self.preprocess)
            dtype = self.preprocess.dtype
            self.decoded = decoded = Decoded(len(self), self.shape, dtype, self.disk, key)
        lacking = index[~decoded.done[index]].unique().tolist()
        for position in tracked(lacking, f"decoding {self.name}"):
            decoded.put(position, self._decode(position))
        if lacking and decoded.done.all():
            decoded.keep()
        return decoded

    def _decode(self, position: int) -> Tensor:
        return self.transform(self.examples.item(int(self.rows[position])))


class CorruptedImages(TaskInputs):
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
        >>> from lightning_merge.models import ImagePreprocess
        >>> grey = array_examples(["cat"], [0], np.full((1, 8, 8), 128, np.uint8))
        >>> preprocess = ImagePreprocess(size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> clean = TaskInputs(grey, torch.arange(1), preprocess, cache=True)
        >>> noisy = CorruptedImages(clean, Corruption("gaussian_noise", 5), "cats", ["c0ffee"])
        >>> bool((noisy[0].inputs == noisy[[0]].inputs).all()), noisy[0].inputs.unique().numel() > 9
        (True, True)
    """

    def __init__(
        self, clean: TaskInputs, corruption: Corruption, task: str, hashes: Sequence[str]
    ) -> None:
        super().__init__(clean.examples, clean.rows, clean.preprocess, cache=False, name=clean.name)
        self.clean, self.corruption, self.task, self.hashes = clean, corruption, task, hashes
        self.num_bytes = 2 * clean.num_bytes

    def prepare(self, positions: Iterable[int] | None = None) -> None:
        """Decode and corrupt the images that are kept in memory; see `TaskInputs.prepare`."""
        chosen = [*(range(len(self)) if positions is None else positions)]
        self.clean.prepare(chosen)
        super().prepare(chosen)

    def _decode(self, position: int) -> Tensor:
        names = (self.task, self.hashes[position])
        return self.corruption.apply(self.clean[position].inputs[0], names)


def draw_unlabelled(pools: Mapping[str, TaskInputs], total: int, seed: int) -> dict[str, Tensor]:
    """Return some inputs without labels, evenly of all tasks.

    Args:
        pools: Task -> its examples.
        total: Number of inputs of all tasks together.
        seed: Seed of the sample.

    Returns:
        Task -> transformed examples [n, ...], texts cut to the longest of all.

    Examples:
        >>> import numpy as np
        >>> from lightning_merge.data.examples import array_examples
        >>> from lightning_merge.models import ImagePreprocess
        >>> pets = array_examples(["cat"], [0, 0, 0], np.zeros((3, 8, 8), np.uint8))
        >>> preprocess = ImagePreprocess(size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> images = TaskInputs(pets, torch.arange(3), preprocess, cache=True)
        >>> draw_unlabelled({"pets": images}, total=2, seed=0)["pets"].shape
        torch.Size([2, 3, 4, 4])
    """
    drawn = draw_evenly(total, {task: len(pool) for task, pool in pools.items()}, seed)
    rows = [pools[task].rows_at(torch.tensor(chosen)) for task, chosen in drawn.items()]
    trim = next(iter(pools.values())).preprocess.trim
    return dict(zip(drawn, trim(*rows), strict=True))


class Unlabelled(Dataset[Batch]):
    """The same examples at the same positions, with -1 for every label.

    Args:
        inputs: Examples whose labels to hide; they are shared, not copied.

    Examples:
        >>> import numpy as np
        >>> from lightning_merge.data.examples import array_examples
        >>> from lightning_merge.models import ImagePreprocess
        >>> pets = array_examples(["cat", "dog"], [0, 1], np.zeros((2, 8, 8), np.uint8))
        >>> preprocess = ImagePreprocess(size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> Unlabelled(TaskInputs(pets, torch.arange(2), preprocess, cache=True))[1].labels
        tensor([-1])
    """

    def __init__(self, inputs: TaskInputs) -> None:
        self._inputs = inputs

    @property
    def cache(self) -> bool:
        """Whether transformed examples are kept in memory."""
        return self._inputs.cache

    @property
    def sizes(self) -> Tensor | None:
        """See `TaskInputs.sizes`."""
        return self._inputs.sizes

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, position: int | list[int]) -> Batch:
        batch = self._inputs[position]
        return batch._replace(labels=torch.full_like(batch.labels, -1))
