"""One data module for any list of tasks, with splits that keep reported numbers honest."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_merge.core.errors import InputError
from lightning_merge.core.files import atomic_write
from lightning_merge.data import splits
from lightning_merge.data.dataset import Batch, TaskImages, loader
from lightning_merge.data.source import Examples, open_source, same_classes
from lightning_merge.models.preprocess import Preprocess

FRACTIONS = {"1%": 0.01, "5%": 0.05, "all": 1.0}


class MergeDataModule(LightningDataModule):
    """Aggregate tasks: train, validation, coefficient and test images of each.

    The test split is the source's own. The train split is divided once, stratified and seeded
    by `split_seed`: `validation_fraction` of it is held out from the training of experts and
    serves to choose coefficients and hyperparameters; the rest trains experts.

    Args:
        root: folder or file of the source.
        tasks: names of the tasks, two or more for merging; every task of the source if empty.
        source: layout of root: folders, torchvision, huggingface, drawn or pool.
        fit_on: what `fit` sees: "train" (experts) or "coefficients" (merging).
        validation_fraction: share of the train split held out, in (0, 1).
        coefficient_fraction: share of the held-out images that coefficients are fitted on,
            "1%", "5%", "all" or a number in (0, 1].
        batch_size: images per task and step of fit; in total with sampling "proportional".
        sampling: "equal" draws as many images of every task; "proportional" to its size.
        eval_batch_size: images per step of evaluation.
        unlabelled_images: images, drawn evenly over tasks from the held-out ones, for
            methods that need unlabelled batches such as M-TIES.
        split_seed: seed of the division; part of what a number means, so keep it.
        num_workers: loader processes for images that are not kept in memory.
        cache_gib: decoded images are kept in memory up to this size.

    Raises:
        InputError: a value is out of range, or `fit_on` asks for test images.
    """

    def __init__(
        self,
        root: str,
        tasks: Sequence[str] = (),
        source: str = "folders",
        fit_on: Literal["train", "coefficients", "test"] = "coefficients",
        validation_fraction: float = 0.2,
        coefficient_fraction: str | float = "all",
        batch_size: int = 16,
        sampling: Literal["equal", "proportional"] = "equal",
        eval_batch_size: int = 256,
        unlabelled_images: int = 128,
        split_seed: int = 0,
        num_workers: int = 0,
        cache_gib: float = 2.0,
    ) -> None:
        super().__init__()
        if fit_on == "test":
            raise InputError(
                "data.fit_on='test': fitting on test images would make every reported number "
                "meaningless; use 'train' or 'coefficients'"
            )
        if not 0 < validation_fraction < 1:
            raise InputError(
                f"data.validation_fraction={validation_fraction} must lie in (0, 1), e.g. 0.2"
            )
        if len(set(tasks)) != len(tasks):
            raise InputError(f"data.tasks={list(tasks)} names a task twice")
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value < 1:
                raise InputError(f"data.{name}={value} must be at least 1")
        self.source = open_source(source, root)
        self.tasks: tuple[str, ...] = tuple(tasks) or tuple(self.source.tasks())
        self.fit_on, self.sampling = fit_on, sampling
        self.validation_fraction = validation_fraction
        self.coefficient_fraction = _fraction(coefficient_fraction)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.unlabelled_images = unlabelled_images
        self.split_seed, self.num_workers, self.cache_gib = split_seed, num_workers, cache_gib
        self.preprocess: Preprocess | None = None
        self.classes: dict[str, tuple[str, ...]] = {}
        self.record: dict[str, Any] = {}
        self._examples: dict[tuple[str, str], Examples] = {}
        self._images: dict[tuple[str, str], TaskImages] = {}

    # Splits

    def load(self, *, test: bool = True) -> None:
        """Find the images of every task and divide them; no image is decoded.

        Args:
            test: also look at the test split (a pool to pretrain on has none).

        Raises:
            InputError: a task has no data, or an image is on both sides of a split.
        """
        for task in self.tasks:
            if (task, "train") in self._examples and (not test or (task, "test") in self._examples):
                continue
            self._load_task(task, test)

    def _load_task(self, task: str, test: bool) -> None:
        train = self.source.load(task, "train")
        held_out = splits.stratified_indices(
            train.labels, self.validation_fraction, self.split_seed
        )
        hashes = splits.content_hashes(train)
        held_out = splits.without_copies(held_out, hashes)
        kept = splits.complement(held_out, len(train))
        parts = {
            "train": [hashes[i] for i in kept.tolist()],
            "validation": [hashes[i] for i in held_out.tolist()],
        }
        labels = {"train": train.labels[kept], "validation": train.labels[held_out]}
        self._examples[task, "train"] = train
        if test:
            examples = self.source.load(task, "test")
            same_classes(task, train.classes, examples.classes)
            parts["test"] = splits.content_hashes(examples)
            labels["test"] = examples.labels
            self._examples[task, "test"] = examples
        splits.check_disjoint(task, parts)
        self.classes[task] = train.classes
        self.record[task] = {
            "classes": list(train.classes),
            "validation_rows": held_out.tolist(),
            **{
                part: {"images": len(values), "digest": splits.digest(values, labels[part])}
                for part, values in parts.items()
            },
        }

    def digest(self, task: str) -> str:
        """Return a digest of a task's train and validation images and labels."""
        record = self.record[task]
        return record["train"]["digest"] + record["validation"]["digest"]

    def write_splits(self, path: Path) -> None:
        """Write splits.json: seed, sizes, digests and the held-out rows of every task."""
        record = {
            "split_seed": self.split_seed,
            "validation_fraction": self.validation_fraction,
            "coefficient_fraction": self.coefficient_fraction,
            "tasks": {task: self.record[task] for task in self.tasks},
        }
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1))

    def images(self, task: str, part: str) -> TaskImages:
        """Return the images of one part of a task, decoded at first use.

        Args:
            task: one of `tasks`.
            part: "train", "validation", "coefficients" or "test".
        """
        if (task, part) not in self._images:
            if self.preprocess is None:
                raise RuntimeError("set `preprocess` to the encoder's before asking for images")
            split = "test" if part == "test" else "train"
            self.load(test=split == "test")
            examples = self._examples[task, split]
            rows = self._rows(task, part, len(examples))
            budget = self.cache_gib * 2**30 - sum(
                i.num_bytes for i in self._images.values() if i.cache
            )
            images = TaskImages(examples, rows, self.preprocess, cache=False)
            images.cache = images.num_bytes <= budget
            self._images[task, part] = images
        return self._images[task, part]

    def _rows(self, task: str, part: str, size: int) -> Tensor:
        if part == "test":
            return torch.arange(size)
        held_out = torch.tensor(self.record[task]["validation_rows"])
        if part == "train":
            return splits.complement(held_out, size)
        if part == "validation":
            return held_out
        labels = self._examples[task, "train"].labels[held_out]
        if self.coefficient_fraction == 1:
            return held_out
        count = max(1, round(self.coefficient_fraction * len(labels)))
        generator = torch.Generator().manual_seed(self.split_seed + 1)
        return held_out[torch.randperm(len(labels), generator=generator)[:count].sort().values]

    def unlabelled(self) -> Tensor:
        """Return `unlabelled_images` held-out images, drawn evenly over tasks, as uint8."""
        pools = [self.images(task, "coefficients") for task in self.tasks]
        counts = splits.balanced_counts(self.unlabelled_images, map(len, pools))
        generator = torch.Generator().manual_seed(self.split_seed + 2)
        drawn = [
            pool.__getitems__(torch.randperm(len(pool), generator=generator)[:count].tolist())
            for pool, count in zip(pools, counts, strict=True)
            if count
        ]
        return torch.cat([batch.images for batch in drawn])

    # Lightning's interface

    def setup(self, stage: str) -> None:
        """Divide the tasks' images and take the preprocessing of the trainer's encoder."""
        if self.trainer is not None and self.preprocess is None:
            self.preprocess = self.trainer.lightning_module.preprocess
        self.load(test=stage in ("test", "predict"))

    def train_dataloader(self) -> CombinedLoader:
        """Return one shuffled loader per task, in step with each other."""
        images = {task: self.images(task, self.fit_on) for task in self.tasks}
        total = sum(map(len, images.values()))
        loaders = {}
        for task, part in images.items():
            size = self.batch_size
            if self.sampling == "proportional":
                size = max(1, round(self.batch_size * len(part) / total))
            loaders[task] = loader(
                part, size, shuffle=True, num_workers=self.num_workers, drop_last=len(part) > size
            )
        return CombinedLoader(loaders, "max_size_cycle")

    def evaluation_loaders(self, part: str) -> list[DataLoader[Batch]]:
        """Return one loader per task over a part, in the order of `tasks`."""
        return [
            loader(
                self.images(task, part),
                self.eval_batch_size,
                shuffle=False,
                num_workers=self.num_workers,
            )
            for task in self.tasks
        ]

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Return one loader per task over the held-out images."""
        return self.evaluation_loaders("validation")

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Return one loader per task over the test images."""
        return self.evaluation_loaders("test")

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        """Return the test loaders; predictions use no label."""
        return self.evaluation_loaders("test")


def _fraction(value: str | float) -> float:
    number = FRACTIONS.get(value) if isinstance(value, str) else value
    if number is None or not 0 < number <= 1:
        raise InputError(
            f"data.coefficient_fraction={value!r}: use one of {list(FRACTIONS)} "
            "or a number in (0, 1]"
        )
    return number
