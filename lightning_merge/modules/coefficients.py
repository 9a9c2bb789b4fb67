"""The base of all modules that learn merging coefficients."""

import json
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_merge import __version__
from lightning_merge.core.checkpoints.checkpoint import save_checkpoint
from lightning_merge.core.checks import require_choice
from lightning_merge.core.cost import Cost
from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import shown_to
from lightning_merge.core.networks.batch_norm import batch_statistics, has_batch_norm
from lightning_merge.core.seeding import run_seed
from lightning_merge.core.vectors.coefficients import StackedTaskVectors
from lightning_merge.core.vectors.learner import Level
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.data.dataset import Batch
from lightning_merge.evaluation.candidates import BOUNDS, Candidate
from lightning_merge.methods.base import Transform
from lightning_merge.methods.coefficient_file import CoefficientFile
from lightning_merge.methods.parts import seeded
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.base import TaskModule
from lightning_merge.modules.by_task import by_task
from lightning_merge.modules.held_out import BatchNorm, HeldOut, check_count, recalibrates
from lightning_merge.modules.memory import check_memory
from lightning_merge.modules.zoo import Zoo


class CoefficientModule(TaskModule):
    """Learned coefficients c_kl of theta_0 + sum_k c_kl tau_kl, with everything else frozen.

    The network is merged once per step, whatever the number of tasks, and the images of all tasks
    pass through it together (texts of different widths do not, see `by_task`). The state dict has
    only `learner`, so checkpoints are kilobytes. Every process holds the stacked task vectors and
    one merged network. A step of N processes equals one of a single process with N times the batch
    size, except that each process takes BatchNorm statistics from its own images.

    Unseen tasks of the data module have a head and are only evaluated.

    Args:
        encoder: Architecture of the base and the experts.
        zoo: Files of base, experts and heads.
        name: Name of the merged network in tables and files.
        level: One coefficient per task and layer, or per task.
        transforms: Applied to the task vectors before learning.
        offload: Keep the task vectors in the host's memory and send those of one tensor at a time
            to the device, for experts that do not fit there together.
        batch_norm: Statistics of BatchNorm layers: "recalibrate" them on held-out images after
            every merge (learning steps then use those of their batch); "average", as the merge
            makes them; "auto" recalibrates unless all experts have those of the base to the bit;
            or evaluate every merged network with "both".

    Attributes:
        candidates: Candidates that the run compares, by name; merging callbacks add theirs.
        held_out: Unlabelled images for methods and BatchNorm, available after `setup`.
        final_scale: Factor of the learned coefficients.
        seconds: Time spent learning.
        transductive: Whether the module learns from unlabelled test examples.

    Examples:
        >>> from lightning_merge.models import MiniViT
        >>> class Uniform(CoefficientModule):
        ...     def make_learner(self, vectors):
        ...         return nn.ParameterList([torch.ones(len(vectors), 1)])
        ...     def task_loss(self, task, logits, batch):
        ...         return nn.functional.cross_entropy(logits, batch.labels)
        >>> zoo = Zoo("base.safetensors", "{task}.safetensors", "heads.safetensors")
        >>> Uniform(MiniViT(depth=1), zoo, "uniform").logged(["cars"], [])
        ['train/loss', 'train/loss_epoch', 'train/loss/cars']
    """

    zoo: Zoo
    learner: nn.Module
    note: str = ""
    transductive: bool = False

    def __init__(
        self,
        encoder: Encoder,
        zoo: Zoo,
        name: str,
        level: Level = "layer",
        transforms: Sequence[Transform] = (),
        offload: bool = False,
        batch_norm: BatchNorm | Literal["both"] = "auto",
    ) -> None:
        super().__init__(encoder)
        require_choice(("layer", "task"), level=level)
        require_choice(("auto", "recalibrate", "average", "both"), batch_norm=batch_norm)
        self.zoo, self.name, self.level, self.transforms = zoo, name, level, tuple(transforms)
        self.offload, self.heads_files = offload, zoo.heads
        self.batch_norm, self._recalibrates = batch_norm, False
        self.requires_grad_(False)
        self.candidates: dict[str, Candidate] = {}
        self._merged: dict[str, Tensor] | None = None
        self.final_scale = 1.0
        self.seconds = 0.0

    # What a subclass defines

    @abstractmethod
    def make_learner(self, vectors: TaskVectors) -> nn.Module:
        """Return the module whose call gives the coefficients [K, L] of transformed vectors."""

    @abstractmethod
    def task_loss(self, task: str, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of one task's images."""

    def describe_learner(self) -> dict[str, Any]:
        """Return the options to build the learner for other experts; {} if that is impossible."""
        return {}

    def hyperparameters(self) -> dict[str, Any]:
        """Return the options of the learning, for the metadata of its files."""
        return {"transforms": repr(self.transforms), "final_scale": self.final_scale}

    # What callbacks use

    def transform(self, transform: Transform, final_scale: float = 1.0) -> None:
        """Append a transform of the task vectors, applied before learning.

        Args:
            transform: The transform.
            final_scale: Factor of the learned coefficients if there is one for every layer.

        Raises:
            InputError: The task vectors are already stacked without the transform.
        """
        if hasattr(self, "learner"):
            if transform not in self.transforms:
                raise InputError(
                    f"transform={transform} comes after learning; add it before the first fit"
                )
            return
        self.transforms += (transform,)
        if self.level == "layer":
            self.final_scale *= final_scale

    @property
    def variants(self) -> dict[str, bool]:
        """Suffix of a merged network -> whether to recalibrate its BatchNorm, see `prepare`."""
        if self.batch_norm == "both" and has_batch_norm(self.encoder.backbone):
            return {"": True, "_not_recalibrated": False}
        return {"": self._recalibrates}

    def notes(self) -> list[str]:
        """Return notes that hold for all merged networks of the run."""
        return self.held_out.notes(self.batch_norm, self.recalibrated is not None)

    @property
    def recalibrated(self) -> HeldOut | None:
        """Images that gave merged networks their BatchNorm statistics, if any did."""
        return self.held_out if any(self.variants.values()) else None

    # State

    def input_files(self, tasks: Sequence[str]) -> list[str]:
        """Return the files of the zoo."""
        return self.zoo.inputs(tasks)

    def check(self, trainer: Trainer, tasks: Sequence[str], stage: str) -> None:
        """Check what is possible before any file is opened.

        Raises:
            InputError: There are fewer than two tasks, the name is taken, or the module does not
                support the trainer's strategy or precision.
        """
        super().check(trainer, tasks, stage)
        if self.name in BOUNDS:
            raise InputError(f"model.name={self.name!r} is reserved for a reference; give another")
        if len(tasks) < 2:
            raise InputError(
                f"data.tasks={list(tasks)}: merging takes two tasks or more besides data.unseen"
            )

    def logged(self, seen: Sequence[str], validated: Sequence[str]) -> list[str]:
        """Return the names of the losses; there is no validation."""
        return ["train/loss", "train/loss_epoch", *(f"train/loss/{task}" for task in seen)]

    def prepare(self, stage: str) -> None:
        """Open the zoo, stack the task vectors and make the learner.

        Raises:
            InputError: Files are missing or do not fit.
        """
        super().prepare(stage)
        if stage == "fit" and self.data.fit_on == "train":
            raise InputError(
                "data.fit_on='train': these images trained the experts, so they say nothing about "
                "their merge; give data.fit_on: coefficients"
            )
        if hasattr(self, "learner"):
            return
        base, experts = self.zoo.open(self.encoder, self.data.seen)
        choice: BatchNorm = "recalibrate" if self.batch_norm == "both" else self.batch_norm
        self._recalibrates = recalibrates(choice, self.encoder.backbone, base, experts.values())
        if self._recalibrates:
            check_count(self.data)
        vectors = TaskVectors(base, experts, scope="changed")
        if not vectors.names:
            raise InputError(
                f"zoo.experts={self.zoo.experts!r}: no expert differs from zoo.base="
                f"{self.zoo.base!r}, so there is nothing to merge; give fine-tuned experts"
            )
        check_memory(vectors, self.trainer, offload=self.offload)
        for transform in self.transforms:
            vectors = seeded(transform, run_seed())(vectors)
        device = self.trainer.strategy.root_device
        self.stacked = StackedTaskVectors(vectors, device, offload=self.offload)
        self.learner = self.make_learner(vectors)
        self.open_heads(self.zoo.heads)
        self.held_out = HeldOut(self.encoder, self.data, self.heads)  # type: ignore[arg-type]
        self.base, self.experts = base, experts
        for candidate in self.zoo.bounds(self.data.tasks):
            self.candidates[candidate.name] = candidate

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return only the learner's state."""
        return self.learner.state_dict(prefix="learner.")

    def learned(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the learner's parameters and its coefficients."""
        yield from self.learner.named_parameters(prefix="learner")
        yield "coefficients", self.coefficients()

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the learner's state, strictly.

        Raises:
            InputError: The state is another learner's.
        """
        self._merged = None
        state = {name.removeprefix("learner."): value for name, value in state_dict.items()}
        with self.ranks.agreed():
            try:
                return self.learner.load_state_dict(state)
            except RuntimeError as fault:
                raise InputError(
                    f"the checkpoint does not fit the model's learner ({fault}); give one that "
                    "this configuration has written"
                ) from fault

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the time spent."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["seconds"] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the time spent."""
        self.seconds = checkpoint["seconds"]

    def on_fit_start(self) -> None:
        """Move the task vectors, which are not module state, to the device; start the clock.

        The encoder's weights share the base's memory until fit ends.
        """
        self._started = time.perf_counter()
        self.stacked.to(self.device)
        self.stacked.share(dict(self.encoder.backbone.named_parameters(remove_duplicate=False)))

    def on_train_epoch_end(self) -> None:
        """Add the time of the epoch."""
        super().on_train_epoch_end()
        now = time.perf_counter()
        self.seconds += now - self._started
        self._started = now

    # The merged network

    def coefficients(self) -> Tensor:
        """Return the coefficients [K, L] of `stacked.tasks` and `stacked.names`, in float32."""
        with torch.autocast(self.device.type, enabled=False):
            return self.learner()

    def final_coefficients(self) -> Tensor:
        """Return the coefficients [K, L] of the final merge."""
        return self.final_scale * self.coefficients()

    def features(self, inputs: Tensor) -> Tensor:
        """Map the network's inputs to features by the merged network, which is kept."""
        if self._merged is None:
            with torch.no_grad():
                merged = self.stacked.to(self.device).merge(self.final_coefficients())
            recalibrate = next(iter(self.variants.values()))
            self._merged = self.held_out.recalibrate(merged) if recalibrate else merged
        return self.encoder.functional(self._merged, inputs)

    def training_step(self, batch: Mapping[str, Batch], batch_idx: int) -> Tensor:
        """Return the loss, averaged over tasks."""
        self._merged = None
        losses: dict[str, Tensor] = {}
        inputs = {task: part.inputs for task, part in batch.items()}

        def of(weights: Mapping[str, Tensor]) -> Tensor:
            with batch_statistics(self.encoder.backbone, any(self.variants.values())):
                features = by_task(partial(self.encoder.functional, weights), inputs)
            for task, part in batch.items():
                logits = self.heads[task](features[task]).float()
                losses[task] = self.task_loss(task, logits, part)
            return torch.stack(list(losses.values())).mean()

        loss = self.stacked.loss(self.coefficients(), of, scale=self._loss_scale)
        self._log_losses(losses)
        return loss

    @property
    def _loss_scale(self) -> float:
        """Factor of the losses in float16 mixed precision; 1 otherwise."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else scaler.get_scale()

    def _log_losses(self, losses: Mapping[str, Tensor]) -> None:
        """Log the mean loss of every task, over all processes, and their average."""
        every = torch.stack(list(losses.values())).detach()
        means = self.trainer.strategy.reduce(every, reduce_op="mean")
        mean = means.mean()
        self.log("train/loss", mean, prog_bar=True, batch_size=1)
        epoch: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True}
        self.log("train/loss_epoch", mean, batch_size=1, **epoch)
        values = zip(losses, means, strict=True)
        self.log_dict({f"train/loss/{task}": value for task, value in values}, batch_size=1)

    # Results

    @torch.no_grad()
    def on_fit_end(self) -> None:
        """Save coefficients.safetensors and the merged network, and add it as a candidate."""
        self.to(self.trainer.strategy.root_device)  # Lightning has put it on the CPU by now
        self.check_finite()
        values = self.final_coefficients()
        self._merged = None
        self.ranks.once(lambda: self._save(values))
        for parameter in self.encoder.backbone.parameters():
            parameter.data = parameter.data.clone()  # no longer the base's memory
        untrained = (
            "" if self.trainer.global_step else "as it starts: no step of training was taken"
        )
        note = "; ".join(filter(None, [self.note, untrained]))
        for suffix in self.variants:
            name = self.name + suffix
            self.candidates[name] = Candidate(
                name,
                self.merged_file(name),
                cost=Cost(self.seconds),
                note=note,
                transductive=self.transductive,
                seen=shown_to(self),
            )

    def merged_file(self, name: str) -> Path:
        """Return the file of a merged network."""
        return self.run_folder / "merged" / f"{name}.safetensors"

    def figure_file(self, name: str) -> Path:
        """Return the file of a figure."""
        return self.run_folder / "figures" / f"{name}.png"

    def _save(self, values: Tensor) -> None:
        learned = CoefficientFile(
            values,
            self.stacked.tasks,
            self.stacked.names,
            self.describe_learner(),
            self.learner.state_dict(),
            self.final_scale,
            self.transductive,
            self.note,
        )
        metadata = {
            "method": type(self).__name__,
            "hyperparameters": json.dumps(self.hyperparameters()),
            **learned.described,
            "scope": "changed",
            "version": __version__,
            **self.encoder.described,
            **self.zoo.hashes(self.stacked.tasks),
        }
        learned.write(self.run_folder / "coefficients.safetensors", metadata)
        merged = self.stacked.merge(values)
        for suffix, recalibrate in self.variants.items():
            weights = self.held_out.recalibrate(merged) if recalibrate else merged
            about = {**metadata, **self.held_out.describe_statistics(recalibrate)}
            cpu = {name: tensor.cpu() for name, tensor in weights.items()}
            named = self.zoo.named_as_base(cpu)
            save_checkpoint(named, self.merged_file(self.name + suffix), metadata=about)

    @property
    def run_folder(self) -> Path:
        """Folder of the run."""
        return Path(self.trainer.default_root_dir)
