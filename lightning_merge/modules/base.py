"""The base of all modules that train and evaluate: encoder, heads, metrics, logging."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torchmetrics.classification import MulticlassStatScores

from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.errors import InputError, warn
from lightning_merge.core.ranks import Ranks
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.data.dataset import Batch
from lightning_merge.data.joint import JointLabels
from lightning_merge.data.resume import count_epochs, leave_open
from lightning_merge.data.sizes import count_batches, count_images
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.preprocess import Preprocess
from lightning_merge.modules.answers import Answers
from lightning_merge.modules.beside import Beside
from lightning_merge.modules.by_task import by_task
from lightning_merge.modules.counting import NOT_COUNTED, SideBySide, counter, filled
from lightning_merge.modules.divergence import EVERY, first_not_finite
from lightning_merge.modules.heads import HeadFiles, fitting_heads
from lightning_merge.modules.measured import Measured
from lightning_merge.modules.zoo import Zoo


def limit(trainer: Trainer, part: str) -> str:
    """Return the option of a trainer that limits a part of the data, with its value.

    Args:
        trainer: Trainer with the limit.
        part: "train", "val", "test" or "predict".

    Examples:
        >>> limit(Trainer(limit_val_batches=2, accelerator="cpu", logger=False), "val")
        'trainer.limit_val_batches=2'
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return "trainer.fast_dev_run"
    name = f"limit_{part}_batches"
    return f"trainer.{name}={getattr(trainer, name)}"


class TaskModule(LightningModule):
    """An encoder with one head per task.

    Subclasses define how features are made (`features`) and what is trained. The last step of the
    preprocessing runs on the device; every part of the data has one accuracy per task. Every
    process counts its own examples, and the counts are summed at the end of a pass.

    Args:
        encoder: Encoder whose backbone is trained or merged.

    Attributes:
        zoo: Base, experts and heads, if the module merges them; None otherwise.
        heads_files: File or files of the frozen heads; None if heads are trained.
        measured: Part of the data ("train", "val", "test") -> its last pass.
        strategies: Lightning strategies that the module supports.
        end_counts: Whether training steps depend on where training ends, as with a learning rate
            that decays until then.

    Examples:
        >>> from lightning_merge.models import MiniViT
        >>> TaskModule(MiniViT(depth=1)).logged(["cars"], ["cars"])
        ['train/loss', 'train/cars', 'train/average', 'val/cars', 'val/average']
    """

    zoo: Zoo | None = None
    heads_files: HeadFiles | None = None
    strategies: ClassVar[tuple[type, ...]] = (SingleDeviceStrategy, DDPStrategy)
    end_counts: ClassVar[bool] = True

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict()
        self.metrics = nn.ModuleDict()
        self.measured: dict[str, Measured] = {}
        self.right, self.beside = Answers(), Beside()
        self._any_finite: Tensor | None = None
        self._joint: JointLabels | None = None

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of the encoder."""
        return self.encoder.preprocess

    @property
    def data(self) -> MergeDataModule:
        """The trainer's data module."""
        return self.trainer.datamodule  # type: ignore[attr-defined, no-any-return]

    @property
    def ranks(self) -> Ranks:
        """Processes of the run."""
        return Ranks.of(self.trainer)

    def input_files(self, tasks: Sequence[str]) -> list[str]:
        """Return the files, apart from the encoder's, that the results of a run depend on."""
        return []

    def check(self, trainer: Trainer, tasks: Sequence[str], stage: str) -> None:
        """Check what is possible before any file is opened.

        Args:
            trainer: Trainer that will run the module.
            tasks: Names of the tasks, without those that are evaluated only.
            stage: "fit", "validate", "test" or "predict".

        Raises:
            InputError: The module does not support the trainer's strategy or precision.
        """
        if not isinstance(trainer.strategy, self.strategies):
            raise InputError(
                f"trainer.strategy={type(trainer.strategy).__name__}: {type(self).__name__} needs "
                "the whole network on every device; use ddp, or one device"
            )
        sharded = isinstance(trainer.strategy, FSDPStrategy)  # casts inputs by itself
        if trainer.precision not in ("32-true", "bf16-mixed", "16-mixed") and not sharded:
            raise InputError(
                f"trainer.precision={trainer.precision!r}: weights are trained, merged and "
                "measured in float32; use bf16-mixed, 16-mixed or 32-true"
            )

    def logged(self, seen: Sequence[str], validated: Sequence[str]) -> list[str]:
        """Return the names of the metrics that callbacks of `fit` may watch.

        Args:
            seen: Names of the tasks that are trained on.
            validated: Names of the tasks that are validated on, if any.
        """
        names = ["train/loss", *(f"train/{task}" for task in seen), "train/average"]
        return [*names, *(f"val/{task}" for task in validated), *["val/average"][: len(validated)]]

    def setup(self, stage: str) -> None:
        """Check the input and prepare the module; all processes fail if one does.

        Raises:
            InputError: See `check` and `prepare`.
        """
        with self.ranks.agreed():
            self.check(self.trainer, self.data.seen, stage)
            self.prepare(stage)
        count_epochs(self.trainer)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the state of a checkpoint.

        Raises:
            InputError: The checkpoint is another module's.
        """
        with self.ranks.agreed():
            try:
                return super().load_state_dict(state_dict, *args, **kwargs)
            except RuntimeError as fault:
                raise InputError(
                    f"the checkpoint does not fit {type(self).__name__} and its encoder; give one "
                    "that this configuration has written"
                ) from fault

    # Divergence

    def learned(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that training changes, by name."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                yield name.removeprefix("encoder.backbone."), parameter

    def check_finite(self) -> None:
        """Check that training has not diverged, before anything is saved.

        Raises:
            InputError: Training has diverged.
        """
        with self.ranks.agreed():
            if name := first_not_finite(self.learned()):
                raise InputError(self._diverged(f"{name} is not finite"))
            if self._any_finite is not None and not self._any_finite:
                raise InputError(self._diverged("the loss of no step is finite"))

    def _diverged(self, what: str) -> str:
        trainer = self.trainer
        rate = trainer.optimizers[0].param_groups[0]
        return (
            f"training has diverged in epoch {trainer.current_epoch}, step {trainer.global_step}: "
            f"{what}, so nothing was written; give a model.learning_rate below "
            f"{rate.get('initial_lr', rate['lr'])}, or trainer.gradient_clip_val"
        )

    def on_train_epoch_start(self) -> None:
        """Reset the record of finite losses."""
        self._any_finite = None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check every `EVERY` steps that training has not diverged."""
        if isinstance(outputs, Mapping):
            finite = outputs["loss"].isfinite()
            self._any_finite = finite if self._any_finite is None else self._any_finite | finite
        if self.trainer.global_step % EVERY == 0:
            self.check_finite()

    def on_train_epoch_end(self) -> None:
        """Check that training has not diverged before a checkpoint is written."""
        self.check_finite()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the class names, and mark an epoch that was cut short as unfinished."""
        checkpoint["classes"] = {task: list(names) for task, names in self.data.classes.items()}
        leave_open(self.trainer, checkpoint)

    @property
    def joint(self) -> JointLabels | None:
        """The joint labels that the weights under test are measured by, if they are."""
        return self._joint if self.data.joint_labels else None

    def prepare(self, stage: str) -> None:
        """Make one accuracy per task and part of the data; subclasses prepare more.

        Raises:
            InputError: A task has a single class.
        """
        for task in self.data.evaluated:
            classes = len(self.data.classes[task])
            if classes < 2:
                raise InputError(
                    f"task {task!r} has only the class {self.data.classes[task][0]!r}; give images "
                    "of two classes or more"
                )
            for part in ("train", "val", "test"):
                key = f"{part}/{task}"
                if key not in self.metrics:
                    self.metrics[key] = counter(classes)
        if self.data.joint_labels:
            self._joint = JointLabels({task: self.data.classes[task] for task in self.data.tasks})
            for task in self.data.tasks:
                self.metrics[f"joint/{task}"] = counter(self._joint.size)

    def open_heads(self, files: HeadFiles) -> None:
        """Load the frozen heads of the tasks from their files.

        Raises:
            InputError: See `fitting_heads`.
        """
        self.heads.update(fitting_heads(files, self.data, self.encoder, self.data.evaluated))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint's heads have the data's classes.

        Raises:
            InputError: They have other classes, or another order.
        """
        if "classes" not in checkpoint:
            warn("the checkpoint does not name its classes; they are assumed to be the data's")
        for task, names in checkpoint.get("classes", {}).items():
            if task in self.data.classes and list(self.data.classes[task]) != names:
                raise InputError(
                    f"the checkpoint's head of {task!r} has the classes "
                    f"{enumerate_names(names, 5)}, the data has "
                    f"{enumerate_names(self.data.classes[task], 5)}; give the data that it was "
                    "trained on"
                )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Finish the preprocessing of a batch, or of a batch per task, on the device."""
        if isinstance(batch, Batch):
            return batch._replace(inputs=self.preprocess.finish(batch.inputs))
        if isinstance(batch, Mapping):
            return {k: self.on_after_batch_transfer(v, dataloader_idx) for k, v in batch.items()}
        return batch

    def features(self, inputs: Tensor) -> Tensor:
        """Map the network's inputs [n, ...] to features [n, dim]."""
        return self.encoder(inputs)

    def task_features(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Encode the inputs of all tasks, those of the same shape in one pass."""
        return by_task(self.features, {task: batch.inputs for task, batch in batches.items()})

    def counts(self, part: str, task: str) -> MulticlassStatScores:
        """Return the counts of right predictions of a task in a part of the data."""
        return cast(MulticlassStatScores, self.metrics[f"{part}/{task}"])

    def logits(self, batch: Batch, dataloader_idx: int) -> Tensor:
        """Return the logits [n, C] of one batch of one task, see `through_heads`."""
        head = self.heads[self.data.evaluated[dataloader_idx]]
        return self.through_heads(batch, dataloader_idx, [head])[0]

    def through_heads(
        self, batch: Batch, dataloader_idx: int, heads: Sequence[nn.Module]
    ) -> list[Tensor]:
        """Return what several heads make of the features of one batch of one task.

        A process without a batch left gets an empty one. It runs the network on a blank input and
        returns [1, C], because other processes may wait for its part of the network.
        """
        features = self.batch_features(batch, dataloader_idx)
        return [head(features) for head in heads]

    def batch_features(self, batch: Batch, dataloader_idx: int) -> Tensor:
        """Return the features of one batch of one task; of an empty one, see `through_heads`."""
        return self.features(filled(batch).inputs)

    def written(self, batch: Batch, dataloader_idx: int) -> Tensor | None:
        """Return which answers the network writes to a batch of prompts, bool [n, C]."""
        with self.encoder.writing():
            return self.batch_features(batch, dataloader_idx)

    def evaluate(self, part: str, batch: Batch, dataloader_idx: int) -> None:
        """Count the right predictions of one batch of one task, and those among all classes."""
        task = self.data.evaluated[dataloader_idx]
        joint = self.joint if part == "test" and task in self.data.tasks else None
        heads = [self.heads[task], *([] if joint is None else [SideBySide(self.heads, joint.of)])]
        logits, *others = self.through_heads(batch, dataloader_idx, heads)
        labels = batch.labels if len(batch.labels) else batch.labels.new_tensor([NOT_COUNTED])
        self.counts(part, task).update(logits, labels)
        if part == "test":
            self.right.add(task, batch.index, (logits.argmax(1) == labels)[: len(batch.index)])
            written = self.written(batch, dataloader_idx) if self.encoder.exact_match else None
            self.beside.add(task, batch, logits, self.data.classes[task], written)
        if joint is not None and len(batch.labels):
            predicted, true = joint.predicted(others[0]), joint.true(task, labels)
            self.counts("joint", task).update(predicted, true)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count right predictions on held-out examples."""
        self.evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count right predictions on test examples."""
        self.evaluate("test", batch, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the predicted class of every image."""
        return self.logits(batch, dataloader_idx).argmax(1)[: len(batch.labels)]

    def on_predict_epoch_end(self) -> None:
        """Warn if not all images were predicted."""
        there = count_batches(self.data, "predict", self.ranks.size)
        batches = zip(there.items(), self.trainer.num_predict_batches, strict=True)
        if few := [f"{n} of {all} batches of {task}" for (task, all), n in batches if n < all]:
            warn(f"{limit(self.trainer, 'predict')}: predictions cover only {', '.join(few)}")

    def _summed(self, part: str, tasks: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return the numbers of right and of all images by task, and reset the counts."""
        if not tasks:
            return {}
        metrics = [self.counts(part, task) for task in tasks]
        own = torch.stack([metric.compute() for metric in metrics])
        counts = self.trainer.strategy.reduce(own, reduce_op="sum").tolist()
        for metric in metrics:
            metric.reset()
        return {task: (row[0], row[-1]) for task, row in zip(tasks, counts, strict=True)}

    def close(self, part: str) -> None:
        """Sum and log the counts of a pass over a part, and reset them for the next pass.

        Unseen tasks count only in the average of test examples, because choices may be made by the
        other averages. What is out of domain has an average of its own, and so has the accuracy
        among the classes of all tasks, if it is measured.
        """
        data = self.data
        tasks = data.seen if part == "train" else data.evaluated_on(part)
        there = {} if part == "train" else count_images(self.data, part)
        answers = self.right.collect(self.ranks) if part == "test" else {}
        beside = self.beside.collect(self.ranks, data.classes) if part == "test" else {}
        measured = Measured({}, {}, there, right=answers, joint={}, distance={}, beside=beside)
        for task, (right, images) in self._summed(part, tasks).items():
            measured.accuracy[task], measured.samples[task] = right / max(images, 1), images
        if part == "test" and self.joint is not None:
            own = [task for task in tasks if task in data.tasks]
            for task, (right, images) in self._summed("joint", own).items():
                measured.joint[task] = right / max(images, 1)
        self.measured[part] = measured
        if part != "train" and measured.shares and not self.trainer.sanity_checking:
            warn(f"{limit(self.trainer, part)}: {part} accuracies cover only {measured.shares}")
        values = {f"{part}/{task}": value for task, value in measured.accuracy.items()}
        # Equal in all processes; "max" keeps them to the bit, and Lightning from warning.
        self.log_dict(values, sync_dist=True, reduce_fx="max")
        averages = measured.averages(
            data.tasks if part == "test" else data.seen, data.out_of_domain
        )
        for name, average in averages.items():
            self.log(f"{part}/{name}", average, prog_bar=True, sync_dist=True, reduce_fx="max")

    def on_validation_epoch_end(self) -> None:
        """Store and log the accuracy of every task and their average."""
        self.close("val")

    def on_test_epoch_end(self) -> None:
        """Store and log the accuracy of every task and their average."""
        self.close("test")
