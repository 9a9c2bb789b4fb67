"""One data module for any list of tasks, with splits that keep reported numbers honest."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_merge.core.errors import InputError
from lightning_merge.core.files import atomic_write
from lightning_merge.core.names import enumerate_names
from lightning_merge.core.ranks import ALONE, Ranks
from lightning_merge.core.seeding import generator_for
from lightning_merge.data import splits
from lightning_merge.data.dataset import Batch, SeededOrder, TaskImages, loader
from lightning_merge.data.examples import Examples
from lightning_merge.data.options import at_least, checked_names, fraction, one_of
from lightning_merge.data.source import open_source, same_classes
from lightning_merge.models.preprocess import Preprocess

PARTS = ("train", "validation", "coefficients", "test")


class MergeDataModule(LightningDataModule):
    """Aggregate tasks: train, validation, coefficient and test images of each.

    The test split is the source's own. The train split is divided once, stratified and seeded
    by `split_seed`: `validation_fraction` of it is held out from the training of experts and
    serves to choose coefficients and hyperparameters; the rest trains experts. The division
    of a task depends on its own train split and the seed, not on the other tasks.

    Several processes of one trainer share the batches of every loader, see `Shares`: a step of
    `fit` on N of them is one of N times the batch size on one, and evaluation looks at every
    image once. Each keeps its own decoded images in memory.

    Works without a Trainer: set `preprocess`, call `load` and ask for `images`.

    Args:
        root: folder or file of the source; "" where the source needs none.
        tasks: names of the tasks, two or more for merging; every task of the source if empty.
        source: layout of root: folders, torchvision, huggingface, drawn or pool.
        fit_on: what `fit` sees: "train" (experts) or "coefficients" (merging).
        validation_fraction: share of the train split held out, in (0, 1).
        coefficient_fraction: share of the held-out images that coefficients are fitted on,
            "1%", "5%" or any other percentage, "all", or a number in (0, 1].
        duplicates: where a copy of a test image is in the train split: "error", or "drop" it
            from train. Copies are found by their bytes; an image encoded anew is another one.
        batch_size: images per task, step and process of fit; of all tasks together, about, with
            sampling "proportional".
        sampling: "equal" draws as many images of every task; "proportional" to its size.
        eval_batch_size: images per step and process of evaluation.
        unlabelled_images: images, drawn evenly over tasks from the held-out ones, for
            methods that need unlabelled batches such as M-TIES.
        split_seed: seed of the division; part of what a number means, so keep it.
        num_workers: loader processes for images that are not kept in memory.
        cache_gib: decoded images are kept in memory up to this size, by every process.

    Raises:
        InputError: a value is out of range, or `fit_on` asks for test images.
    """

    def __init__(
        self,
        root: str = "",
        tasks: Sequence[str] = (),
        source: str = "folders",
        fit_on: Literal["train", "coefficients", "test"] = "coefficients",
        validation_fraction: float = 0.2,
        coefficient_fraction: float | str = "all",
        duplicates: Literal["error", "drop"] = "error",
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
        one_of("fit_on", fit_on, ("train", "coefficients"))
        one_of("sampling", sampling, ("equal", "proportional"))
        one_of("duplicates", duplicates, ("error", "drop"))
        if not 0 < validation_fraction < 1:
            raise InputError(
                f"data.validation_fraction={validation_fraction} must lie in (0, 1), e.g. 0.2"
            )
        at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        at_least(1, unlabelled_images=unlabelled_images)
        at_least(0, num_workers=num_workers, cache_gib=cache_gib)
        self.source = open_source(source, root)
        self.tasks = checked_names(tasks or self.source.tasks(), root)
        self.fit_on, self.sampling, self.duplicates = fit_on, sampling, duplicates
        self.validation_fraction = validation_fraction
        self.coefficient_fraction = fraction(coefficient_fraction)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.unlabelled_images = unlabelled_images
        self.split_seed, self.num_workers, self.cache_gib = split_seed, num_workers, cache_gib
        self.classes: dict[str, tuple[str, ...]] = {}
        self.record: dict[str, Any] = {}
        self._preprocess: Preprocess | None = None
        self._examples: dict[tuple[str, str], Examples] = {}
        self._hashes: dict[tuple[str, str], list[str]] = {}
        self._rows: dict[tuple[str, str], Tensor] = {}
        self._images: dict[tuple[str, str], TaskImages] = {}

    @property
    def preprocess(self) -> Preprocess | None:
        """Preprocessing of the encoder that gets the images; another one decodes them anew."""
        return self._preprocess

    @preprocess.setter
    def preprocess(self, preprocess: Preprocess | None) -> None:
        if preprocess != self._preprocess:
            self._images.clear()
        self._preprocess = preprocess

    # Splits

    def load(self, *, test: bool | None = True) -> None:
        """Find the images of every task and divide them; every file is read once.

        Args:
            test: also look at the test split; None: where the source means to have one (a
                pool to pretrain on has none).

        Raises:
            InputError: a task has no data, a file is evidently no whole image, or an image is
                on both sides of a split.
        """
        for task in self.tasks:
            wanted = bool(test)
            if test is None or self.duplicates == "drop":
                wanted = wanted or self.source.offers(task, "test")
            read = [self._read(task, split) for split in ("train", "test")[: 1 + wanted]]
            if any(read):
                self._divide(task)

    def _read(self, task: str, split: str) -> bool:
        """Find and hash one split; return whether that was to be done."""
        if (task, split) in self._hashes:
            return False
        examples = self.source.load(task, split)
        if not len(examples):
            raise InputError(f"task {task!r}: {split} has no images; fill it")
        if split == "test":
            same_classes(task, self._examples[task, "train"].classes, examples.classes)
        self._examples[task, split] = examples
        self._hashes[task, split] = splits.content_hashes(examples, f"{task} {split}")
        return True

    def _divide(self, task: str) -> None:
        """Divide a task into parts, prove them disjoint and record them."""
        train, hashes = self._examples[task, "train"], self._hashes[task, "train"]
        test = self._hashes.get((task, "test"), [])
        kept, held_out = splits.divide(
            train.labels,
            hashes,
            self.validation_fraction,
            self.split_seed,
            leave_out=set(test) if self.duplicates == "drop" else (),
        )
        few = splits.draw_share(held_out, self.coefficient_fraction, self.split_seed + 1)
        rows = {"train": kept, "validation": held_out, "coefficients": few}
        if test:
            rows["test"] = torch.arange(len(test))
        self._rows.update({(task, part): r for part, r in rows.items()})
        self._record(task, rows)

    def _record(self, task: str, rows: dict[str, Tensor]) -> None:
        """Check the parts of a task and note them for splits.json."""
        train = self._examples[task, "train"]
        for part in ("train", "validation"):
            if not len(rows[part]):
                raise InputError(
                    f"task {task!r}: of {len(train)} images in {len(train.classes)} classes none "
                    f"is left for {part} with data.validation_fraction="
                    f"{self.validation_fraction}; give more images per class or another fraction"
                )
        found = {part: self._part_hashes(task, part) for part in rows}
        splits.check_disjoint(task, {p: h for p, h in found.items() if p != "coefficients"})
        self.classes[task] = train.classes
        self.record[task] = {
            "classes": list(train.classes),
            "left_out": len(train) - len(rows["train"]) - len(rows["validation"]),
            "validation_rows": rows["validation"].tolist(),
            "coefficient_rows": rows["coefficients"].tolist(),
            **{
                part: {"images": len(h), "digest": splits.digest(h, self._labels(task, part))}
                for part, h in found.items()
            },
        }

    def _part_hashes(self, task: str, part: str) -> list[str]:
        hashes = self._hashes[task, _split(part)]
        return [hashes[row] for row in self._rows[task, part].tolist()]

    def _labels(self, task: str, part: str) -> Tensor:
        return self._examples[task, _split(part)].labels[self._rows[task, part]]

    def digest(self, task: str) -> str:
        """Return a digest of a task's train and validation images and labels."""
        record = self.record[task]
        return record["train"]["digest"] + record["validation"]["digest"]

    def write_splits(self, path: Path) -> None:
        """Write splits.json: seed, sizes, content digests and held-out rows of every task.

        Rows count within the source's train split, whose order is part of its layout.
        """
        settings = {
            "source": self.source.name,
            "split_seed": self.split_seed,
            "validation_fraction": self.validation_fraction,
            "coefficient_fraction": self.coefficient_fraction,
        }
        head = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in settings.items()]
        rows = [f"  {json.dumps(task)}: {json.dumps(self.record[task])}" for task in self.tasks]
        text = ",\n".join([*head, ' "tasks": {\n' + ",\n".join(rows) + "\n }"])
        with atomic_write(path) as temporary:
            temporary.write_text(f"{{\n{text}\n}}\n")

    def images(self, task: str, part: str) -> TaskImages:
        """Return the images of one part of a task, each decoded when it is first asked for.

        Args:
            task: one of `tasks`.
            part: "train", "validation", "coefficients" or "test".

        Raises:
            InputError: there is no such task or part.
        """
        one_of("tasks", task, self.tasks)
        one_of("part", part, PARTS)
        if part == "coefficients" and self.coefficient_fraction == 1:
            part = "validation"  # the same rows: keep them in memory once
        if (task, part) not in self._images:
            self._images[task, part] = self._make_images(task, part)
        return self._images[task, part]

    def _make_images(self, task: str, part: str) -> TaskImages:
        if self.preprocess is None:
            raise InputError("data.preprocess is not set: give the encoder's before its images")
        if (task, part) not in self._rows:
            self.load(test=part == "test")
        images = TaskImages(
            self._examples[task, _split(part)],
            self._rows[task, part],
            self.preprocess,
            cache=False,
            name=f"{task} {part}",
        )
        taken = sum(other.num_bytes for other in self._images.values() if other.cache)
        images.cache = images.num_bytes <= self.cache_gib * 2**30 - taken
        return images

    def unlabelled(self, seed: int = 0) -> Tensor:
        """Return `unlabelled_images` held-out images, drawn evenly over tasks.

        Which images of a task are drawn depends on the task, the seed and their number.

        Args:
            seed: of the draw; other runs of the same splits may see other images.

        Returns:
            uint8 [n, 3, s, s]; fewer than asked for where there are not as many.
        """
        pools = {task: self.images(task, "validation") for task in self.tasks}
        counts = splits.balanced_counts(self.unlabelled_images, map(len, pools.values()))
        drawn = []
        for (task, pool), count in zip(pools.items(), counts, strict=True):
            generator = generator_for(self.split_seed + seed, "unlabelled", task)
            positions = torch.randperm(len(pool), generator=generator)[:count].tolist()
            if positions:
                drawn.append(pool.__getitems__(positions).images)
        return torch.cat(drawn)

    # Lightning's interface

    @property
    def ranks(self) -> Ranks:
        """The processes that share the images."""
        return Ranks.of(self.trainer)

    def setup(self, stage: str) -> None:
        """Divide the tasks' images and decode, of those the stage needs, all that fit in memory.

        The preprocessing is that of the trainer's module. A broken image, one on both sides of
        a split, or one that not all processes see, is found here, before long work.
        """
        module = self.trainer.lightning_module if self.trainer is not None else None
        self.preprocess = getattr(module, "preprocess", None) or self.preprocess
        parts = {"fit": [self.fit_on, "validation"], "validate": ["validation"]}.get(
            stage, ["test"]
        )
        if parts[0] == "coefficients":  # merged networks are measured right after they are fitted
            parts.append("test")
        with self.ranks.agreed():
            self.load(test="test" in parts or None)
            for part in parts:
                for task in self.tasks:
                    self._decode(task, part)
        with self.ranks.agreed():
            self._compare_splits()

    def _decode(self, task: str, part: str) -> None:
        """Decode what this process will look at."""
        mine = None if part == self.fit_on else chain(*self.shares(task, part).sampler)
        self.images(task, part).prepare(mine)

    def _compare_splits(self) -> None:
        """Raise InputError where this process found other images than the first one did."""
        own = {
            task: [found["digest"] for found in record.values() if isinstance(found, dict)]
            for task, record in self.record.items()
        }
        first = self.ranks.gather(own)[0]
        if differing := [task for task in self.tasks if own[task] != first[task]]:
            raise InputError(
                f"data.root={self.source.root!r} holds other images of {enumerate_names(differing)}"
                " for this process than for the first one; let all see the same files"
            )

    def train_dataloader(self) -> CombinedLoader:
        """Return one loader per task, shuffled by the run's seed, in step with each other.

        An epoch ends with the task that takes longest; the others start over. Processes divide
        the images of an epoch; those of a task with fewer images than processes go to all.
        """
        images = {task: self.images(task, self.fit_on) for task in self.tasks}
        total = sum(map(len, images.values()))
        seed = self.ranks.gather(torch.initial_seed())[0]
        loaders = {}
        for task, part in images.items():
            size = self.batch_size
            if self.sampling == "proportional":
                size = max(1, round(self.batch_size * len(part) / total))
            ranks, size = self.ranks, min(size, len(part) // self.ranks.size)
            if size == 0:
                ranks, size = ALONE, len(part)
            loaders[task] = loader(
                part,
                size,
                num_workers=self.num_workers,
                order=SeededOrder(len(part), seed, task),
                drop_last=True,
                ranks=ranks,
            )
        return CombinedLoader(loaders, "max_size_cycle")

    def evaluation_loaders(self, part: str) -> list[DataLoader[Batch]]:
        """Return one loader per task over a part, in the order of `tasks`; see `shares`."""
        return [self.shares(task, part) for task in self.tasks]

    def shares(self, task: str, part: str) -> DataLoader[Batch]:
        """Return this process's batches of a pass over a part of a task.

        Together the processes look at every image once, in the batches that one process would
        have; where these do not go round, some get an empty batch.
        """
        images = self.images(task, part)
        return loader(images, self.eval_batch_size, num_workers=self.num_workers, ranks=self.ranks)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Return one loader per task over the held-out images.

        There is none while coefficients are fitted: they are fitted on these very images.
        """
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if fitting and self.fit_on == "coefficients":
            return []
        return self.evaluation_loaders("validation")

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Return one loader per task over the test images."""
        return self.evaluation_loaders("test")

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        """Return the test loaders; predictions use no label."""
        return self.evaluation_loaders("test")


def _split(part: str) -> str:
    """Return the source's split that a part belongs to."""
    return "test" if part == "test" else "train"
