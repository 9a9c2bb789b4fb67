"""The data module of any list of tasks, with splits that keep reported numbers honest."""

from collections.abc import Collection, Sequence
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_merge.core.checks import require_choice, require_in
from lightning_merge.core.errors import InputError, warn
from lightning_merge.core.networks.joined import joined
from lightning_merge.core.ranks import Ranks
from lightning_merge.data.corrupt import Corruption
from lightning_merge.data.dataset import Batch, TaskInputs, Unlabelled, draw_unlabelled
from lightning_merge.data.division import PARTS, TRANSDUCTIVE, Division, split_of
from lightning_merge.data.fit_loaders import FitInputs, fit_loaders
from lightning_merge.data.kept import KeptInputs
from lightning_merge.data.options import (
    check_fit_on,
    checked_names,
    checked_out_of_domain,
    checked_positions,
    checked_unseen,
    fraction,
)
from lightning_merge.data.order import loader
from lightning_merge.data.resume import Position
from lightning_merge.data.source import open_source
from lightning_merge.data.tasks import expand_tasks
from lightning_merge.models.preprocess import Preprocess


class MergeDataModule(LightningDataModule):
    """Train, validation, coefficient and test examples, images or texts, of several tasks.

    The test split is the source's own. The train split is divided once, stratified and seeded by
    `split_seed`: `validation_fraction` of it is held out to choose coefficients and
    hyperparameters; the rest trains experts. The division of a task depends only on its own train
    split and the seed, not on the other tasks.

    Several processes of one trainer share the batches of every loader, see `Shares`: a step of
    `fit` on N processes equals one of a single process with N times the batch size, and
    evaluation sees every example once. Every process keeps its own decoded examples in memory.
    Batches of texts have texts of similar length.

    Without a Trainer, set `preprocess`, call `load` and ask for `inputs`. A module whose attribute
    `transductive` is true is fitted on test examples instead of held-out ones, as in published
    protocols. Their labels are then -1, and splits.json says so.

    Args:
        root: Folder or file of the source; "" for a source that needs none.
        tasks: Tasks and groups such as vision8, two tasks or more for merging; if empty, all of the
            source that are not out of domain.
        unseen: Tasks that are only evaluated; no example of theirs is fitted on.
        out_of_domain: Other data sets of the source, without experts. Their heads are made from the
            base and their test examples measured; nothing else sees them.
        joint_labels: Also measure accuracy among the classes of all tasks, see `JointLabels`.
        source: Layout of root: folders, torchvision, huggingface, drawn or pool; tables for texts;
            or task -> its layout, for at least the tasks in `tasks`.
        roots: Task -> its own root, if `source` is a mapping.
        splits: Folder of published lists of images (Training_01.txt and Testing_01.txt of SUN397;
            eurosat-train.txt, -val, -test; resisc45-train.txt, -val, -test) that divide
            torchvision's undivided data sets. Listed validation images count as train, of which we
            hold out our own. Without lists we divide the data sets, and every table marks it.
        fit_on: Examples that `fit` sees: "train" (experts) or "coefficients" (merging).
        validation_fraction: Share of the train split to hold out, in (0, 1).
        at_most: Most examples of a task in "train", "validation" and "test", chosen at random of
            every class; the others are left out, to keep a run short.
        coefficient_fraction: Share of the held-out examples (test ones for a transductive module)
            that coefficients are fitted on: a percentage ("5%"), "all", or a number in (0, 1].
        duplicates: What to do with copies of test examples in a train split, of the same task or
            another one: raise an "error" or "drop" them. Copies of images have the same bytes (a
            re-encoded image is not recognised), copies of texts the same words.
        apart_from: Tasks of whose test examples no copy may be trained on; by default those in
            tasks. Recipes of experts get those of the whole run.
        batch_size: Examples per task, step and process of `fit`; with proportional sampling, about
            as many of all tasks together.
        sampling: "equal" draws as many examples of every task, "proportional" follows their sizes.
        eval_batch_size: Examples per step and process of evaluation.
        unlabelled_inputs: Held-out examples, evenly of all seen tasks, for methods such as M-TIES.
        split_seed: Seed of the division; results depend on it.
        num_workers: Loader processes for examples that are not kept in memory.
        cache_gib: Memory in GiB for decoded examples, per process.
        image_cache: Folder of decoded images that fit in memory, which other runs then need not
            decode; "auto" for `.images` beside the run folder, "none" for no folder.
        image_cache_gib: Size in GiB of that folder; what was unused for longest is removed first.
        corruption: What to do to test images, for robustness; held-out and train images stay clean.
        unlabelled_images: Old name of `unlabelled_inputs`.

    Attributes:
        seen: Tasks without the unseen ones.
        evaluated: All that is measured on test examples: the tasks, then what is out of domain.
        transductive: Whether `fit` draws test examples; the trainer's module decides.
        kept: Decoded images, in memory and on disk.

    Raises:
        InputError: A value is out of range, or `fit_on` asks for test examples.

    Examples:
        >>> names = ["drawn_hues", "drawn_shapes"]
        >>> data = MergeDataModule(source="drawn", tasks=names, unseen=["drawn_shapes"])
        >>> data.load(test=False)
        >>> data.seen, data.record["drawn_hues"]["validation"]["images"]
        (('drawn_hues',), 352)
    """

    dividing: ClassVar[tuple[str, ...]] = (
        *("root", "source", "roots", "splits", "validation_fraction", "duplicates", "split_seed"),
        *("at_most", "num_workers", "cache_gib", "image_cache", "image_cache_gib"),
    )
    """Options that another module needs to find the same tasks and divide them alike."""

    def __init__(
        self,
        root: str = "",
        tasks: Sequence[str] | str = (),
        unseen: Sequence[str] | str = (),
        out_of_domain: Sequence[str] | str = (),
        joint_labels: bool = False,
        source: str | dict[str, str] = "folders",
        roots: dict[str, str] | None = None,
        splits: str | None = None,
        fit_on: Literal["train", "coefficients", "test"] = "coefficients",
        validation_fraction: float = 0.2,
        at_most: dict[str, int] | None = None,
        coefficient_fraction: float | str = "all",
        duplicates: Literal["error", "drop"] = "error",
        apart_from: Sequence[str] = (),
        batch_size: int = 16,
        sampling: Literal["equal", "proportional"] = "equal",
        eval_batch_size: int = 256,
        unlabelled_inputs: int = 128,
        split_seed: int = 0,
        num_workers: int = 0,
        cache_gib: float = 2.0,
        image_cache: str = "auto",
        image_cache_gib: float = 8.0,
        corruption: Corruption | None = None,
        unlabelled_images: int | None = None,
    ) -> None:
        super().__init__()
        if unlabelled_images is not None:
            warn("data.unlabelled_images is now data.unlabelled_inputs; rename it")
            unlabelled_inputs = unlabelled_images
        check_fit_on(fit_on)
        require_choice(("equal", "proportional"), "data.", sampling=sampling)
        require_in("[1, inf)", "data.", batch_size=batch_size, eval_batch_size=eval_batch_size)
        require_in("[1, inf)", "data.", unlabelled_inputs=unlabelled_inputs)
        require_in("[0, inf]", "data.", num_workers=num_workers)
        self.source = open_source(source, root, roots, splits)
        apart = expand_tasks(out_of_domain or (), "data.out_of_domain")
        tasks = tasks or [task for task in self.source.tasks() if task not in apart]
        self.tasks = checked_names(tasks, self.source.root)
        self.unseen = checked_unseen(unseen, self.tasks)
        self.seen = tuple(task for task in self.tasks if task not in self.unseen)
        self.out_of_domain = checked_out_of_domain(apart, self.tasks, self.source.root)
        self.apart_from = expand_tasks(list(apart_from)) or self.tasks
        self.evaluated = self.tasks + self.out_of_domain
        self.transductive, self.joint_labels = False, joint_labels
        self.fit_on, self.sampling = fit_on, sampling
        self.coefficient_fraction = fraction(coefficient_fraction)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.unlabelled_inputs = unlabelled_inputs
        self.split_seed, self.num_workers = split_seed, num_workers
        self.division = Division(
            self.source,
            validation_fraction=validation_fraction,
            coefficient_fraction=self.coefficient_fraction,
            duplicates=duplicates,
            split_seed=split_seed,
            at_most=at_most or {},
        )
        self.classes, self.record = self.division.classes, self.division.record
        self.kept = KeptInputs(
            self.division, cache_gib, image_cache, image_cache_gib, Corruption.of(corruption)
        )
        self._chosen: dict[str, Tensor] = {}

    @property
    def preprocess(self) -> Preprocess | None:
        """Preprocessing of the encoder; a different one makes images be decoded again."""
        return self.kept.preprocess

    @preprocess.setter
    def preprocess(self, preprocess: Preprocess | None) -> None:
        self.kept.preprocess = preprocess

    @property
    def own_split(self) -> tuple[str, ...]:
        """Tasks that are published undivided and that we divided, see `data.splits`."""
        return tuple(task for task in self.evaluated if self.source.own_split(task))

    def only(self, tasks: Collection[str]) -> None:
        """Leave out all other tasks, before any file is read.

        Args:
            tasks: Names of tasks; names that are not in `seen` are ignored.

        Raises:
            InputError: No task is left.
        """
        kept = tuple(task for task in self.seen if task in tasks)
        if not kept:
            raise InputError(
                f"data.tasks={list(self.tasks)} names none of {', '.join(tasks)}; name the "
                "experts after their tasks"
            )
        self.tasks, self.seen, self.evaluated = kept, kept, kept
        self.unseen, self.out_of_domain = (), ()

    def evaluated_on(self, part: str) -> tuple[str, ...]:
        """Return what a pass over a part covers; on held-out images, only the tasks."""
        return self.evaluated if part == "test" else self.tasks

    # Splits

    def load(self, *, test: bool | None = True) -> None:
        """Find the examples of every task and divide them; every file is read once.

        Args:
            test: Whether to read the test split; None: if the source is expected to have one.

        Raises:
            InputError: A task has no data, a file is evidently broken, or an example is on both
                sides of a split, a test example of another task, or out of domain and in a task.
        """
        every = self.tasks + self.out_of_domain
        self.division.load(*every, test=test, apart_from=self.apart_from)
        self.division.check_tasks(self.tasks)
        self.division.check_apart(self.out_of_domain, self.tasks)

    def digest(self, task: str) -> str:
        """Return a digest of a task's train and validation examples and labels."""
        record = self.record[task]
        return record["train"]["digest"] + record["validation"]["digest"]

    def write_splits(self, path: Path) -> None:
        """Write splits.json: seed, sizes, content digests and held-out rows of every task.

        Rows are positions in the source's train split, whose order is part of its layout;
        `transductive_rows`, which replace `coefficient_rows`, are positions in the test split.
        """
        transductive = self.seen if self.transductive else ()
        kinds = {"unseen": self.unseen, "out_of_domain": self.out_of_domain}
        self.division.write(path, self.tasks + self.out_of_domain, transductive, **kinds)

    def inputs(self, task: str, part: str) -> TaskInputs:
        """Return the examples of one part of a task, each transformed when it is first used.

        Args:
            task: One of the tasks, or out of domain.
            part: "train", "validation", "coefficients" or "test".

        Raises:
            InputError: The task or the part is unknown.
        """
        require_choice(self.tasks + self.out_of_domain, "data.", tasks=task)
        require_choice(PARTS, "data.", part=part)
        return self._find_inputs(task, part)

    def _find_inputs(self, task: str, part: str) -> TaskInputs:
        if self.coefficient_fraction == 1:  # the same rows: keep them in memory once
            part = {"coefficients": "validation", TRANSDUCTIVE: "test"}.get(part, part)
        if self.preprocess is not None and not self.division.has(task, part):
            self.load(test=split_of(part) == "test")
        return self.kept.find(task, part)

    def unlabelled(self, seed: int = 0) -> Tensor:
        """Return the inputs of `unlabelled_by_task` in one tensor [n, ...]."""
        return joined(self.unlabelled_by_task(seed).values())

    def unlabelled_by_task(self, seed: int = 0) -> dict[str, Tensor]:
        """Return `unlabelled_inputs` held-out examples, sampled evenly over the seen tasks.

        The sample of a task depends on the task, the seed and the number of its examples.

        Args:
            seed: Seed of the sample; other runs of the same splits may see other examples.

        Returns:
            Task -> [n, ...], before `Preprocess.finish`, or all examples if a task has too few.
            Texts of all tasks are as wide as the longest one, if they have as many parts.
        """
        pools = {task: self.inputs(task, "validation") for task in self.seen}
        return draw_unlabelled(pools, self.unlabelled_inputs, self.split_seed + seed)

    # Lightning's interface

    @property
    def ranks(self) -> Ranks:
        """The processes that share the examples."""
        return Ranks.of(self.trainer)

    def setup(self, stage: str) -> None:
        """Divide the examples, and transform those that the stage needs and that fit in memory.

        The preprocessing is that of the trainer's module. Broken examples, those on both sides of a
        split, or different in some process are found here. An earlier `restrict` is forgotten.

        Raises:
            InputError: See above, or the module is transductive and `fit_on` is "train".
        """
        module = self.trainer.lightning_module if self.trainer is not None else None
        self.preprocess = getattr(module, "preprocess", None) or self.preprocess
        if self.trainer is not None and Path(self.trainer.default_root_dir) != Path.cwd():
            self.kept.keep_beside(self.trainer.default_root_dir)
        parts = {"fit": ["validation"], "validate": ["validation"]}.get(stage, ["test"])
        if stage == "fit":
            self.transductive = getattr(module, "transductive", False)
            self._chosen.clear()
            if self.fit_on == "coefficients":  # merged networks are measured right after
                parts.append("test")
        with self.ranks.agreed():
            if self.transductive and self.fit_on == "train":
                raise InputError(
                    "data.fit_on='train', but the model is transductive and fits on test examples; "
                    "leave data.fit_on out, or set model.transductive: false"
                )
            self.load(test="test" in parts or None)
            for task in self.seen if stage == "fit" else ():
                self._find_inputs(task, self._fit_part).prepare()
            for part in parts:
                for task in self.evaluated_on(part):
                    self.inputs(task, part).prepare(chain(*self.shares(task, part).sampler))
        self.kept.tell()
        with self.ranks.agreed():
            self.division.check_equal(self.ranks)

    @property
    def _fit_part(self) -> str:
        return TRANSDUCTIVE if self.transductive else self.fit_on

    def _fit_inputs(self, task: str) -> FitInputs:
        inputs = self._find_inputs(task, self._fit_part)
        positions = self._chosen.get(task, torch.arange(len(inputs)))
        return FitInputs(Unlabelled(inputs) if self.transductive else inputs, positions)

    def restrict(self, task: str, positions: Tensor) -> None:
        """Let `fit` draw only some of a task's examples, until the next `fit` begins.

        A module calls this in `on_fit_start`, equally in all processes, before loaders are made.
        `Batch.index` still counts within all examples of the task.

        Args:
            task: One of `seen`.
            positions: Positions in `inputs(task, fit_on)`, in any order, int64 [n].

        Raises:
            InputError: The task is not fitted on, no example is left, or one is out of range.
        """
        require_choice(self.seen, "data.", seen=task)
        size = len(self._fit_inputs(task).inputs)
        self._chosen[task] = checked_positions(positions, task, size)

    def train_dataloader(self) -> CombinedLoader:
        """Return one loader per seen task, shuffled by the run's seed; see `fit_loaders`."""
        return fit_loaders(
            {task: self._fit_inputs(task) for task in self.seen},
            self.batch_size,
            proportional=self.sampling == "proportional",
            seed=self.ranks.gather(torch.initial_seed())[0],
            num_workers=self.num_workers,
            ranks=self.ranks,
            position=Position.of(self.trainer),
        )

    def evaluation_loaders(self, part: str) -> list[DataLoader[Batch]]:
        """Return one loader per task of `evaluated_on`, in its order; see `shares`."""
        return [self.shares(task, part) for task in self.evaluated_on(part)]

    def shares(self, task: str, part: str) -> DataLoader[Batch]:
        """Return this process's batches of a pass over a part of a task.

        Together the processes see every example once, in the batches of a single process; if these
        do not go round, some processes get an empty batch.
        """
        inputs = self.inputs(task, part)
        return loader(inputs, self.eval_batch_size, num_workers=self.num_workers, ranks=self.ranks)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """Return one loader per task over the held-out examples.

        None while coefficients are fitted: they see these, or (transductive) are chosen by them.
        """
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if fitting and self.fit_on == "coefficients":
            return []
        return self.evaluation_loaders("validation")

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Return one loader per task over the test examples; predictions ignore their labels."""
        return self.evaluation_loaders("test")

    predict_dataloader = test_dataloader
