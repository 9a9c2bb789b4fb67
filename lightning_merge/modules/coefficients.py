"""What all modules that learn merging coefficients share."""

import json
import os
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_merge import __version__
from lightning_merge.core.checkpoint import save_checkpoint
from lightning_merge.core.coefficients import StackedTaskVectors
from lightning_merge.core.errors import InputError
from lightning_merge.core.task_vectors import TaskVectors
from lightning_merge.data.dataset import Batch
from lightning_merge.evaluation.candidates import BOUNDS, Candidate, bounds
from lightning_merge.methods.base import Transform
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.base import TaskModule
from lightning_merge.modules.zoo import Zoo


def check_memory(vectors: TaskVectors, trainer: Trainer) -> None:
    """Check that a step's weights fit into a device's memory, or all processes' into the host's.

    They are the stacked task vectors, the base, the encoder's own weights, a merged network and
    its gradient, in float32; activations come on top.

    Raises:
        InputError: they do not.
    """
    entries = sum(map(vectors.numel, vectors.names))
    needed = 4 * (len(vectors) + 4) * entries
    device = trainer.strategy.root_device
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
    elif hasattr(os, "sysconf"):
        pages, processes = os.sysconf("SC_PHYS_PAGES"), trainer.num_devices
        available = pages * os.sysconf("SC_PAGE_SIZE") // processes
    else:  # Windows does not say
        return
    if needed > available:
        raise InputError(
            f"learning coefficients of {len(vectors)} experts of {entries} entries takes "
            f"{needed / 1e9:.3g} GB on every device, and {device} has {available / 1e9:.3g} GB for "
            "it; merge them in closed form (see docs/methods.md), or take fewer or smaller experts"
        )


class CoefficientModule(TaskModule):
    """Learn coefficients c_kl of theta_0 + sum_k c_kl tau_kl with everything else frozen.

    The network is merged once per step, whatever the number of tasks, and all tasks' images go
    through it together. Only `learner` is in the state dict, so checkpoints are kilobytes.
    Every process holds the stacked task vectors and one merged network; a step of N processes
    is that of one with N times the batch size.

    Args:
        encoder: architecture of the base and the experts.
        zoo: files of base, experts and heads.
        name: of the merged network in tables and files.
        transforms: applied to the task vectors before learning.

    Attributes:
        candidates: what the run compares, by name; merging callbacks add theirs.
        seconds: time spent learning.
    """

    learner: nn.Module
    note: str = ""

    def __init__(
        self, encoder: Encoder, zoo: Zoo, name: str, transforms: Sequence[Transform] = ()
    ) -> None:
        super().__init__(encoder)
        self.zoo, self.name, self.transforms = zoo, name, tuple(transforms)
        self.requires_grad_(False)
        self.candidates: dict[str, Candidate] = {}
        self._merged: dict[str, Tensor] | None = None
        self.seconds = 0.0

    # What a subclass defines

    @abstractmethod
    def make_learner(self, base: Mapping[str, Tensor], experts: Mapping[str, Any]) -> nn.Module:
        """Return the module whose call gives the coefficients [K, L]."""

    @abstractmethod
    def task_loss(self, task: str, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of one task's images."""

    def hyperparameters(self) -> dict[str, Any]:
        """Return what the learning depended on, for the metadata of its files."""
        return {"transforms": repr(self.transforms)}

    # State

    def input_files(self, tasks: Sequence[str]) -> list[str]:
        """Return the files of the zoo."""
        return [self.zoo.base, self.zoo.heads, *map(self.zoo.expert, tasks)]

    def check(self, trainer: Trainer, tasks: Sequence[str], stage: str) -> None:
        """Check what can be told before any file is opened.

        Raises:
            InputError: fewer than two tasks, weights would be rounded to half precision,
                networks are sharded over devices, or the name is taken.
        """
        super().check(trainer, tasks, stage)
        if self.name in BOUNDS:
            raise InputError(f"model.name={self.name!r} is that of a reference; give another")
        if str(trainer.precision).endswith("16-true"):
            raise InputError(
                f"trainer.precision={trainer.precision!r} would round the merged weights; "
                "use bf16-mixed, 16-mixed or 32-true"
            )
        if len(tasks) < 2:
            raise InputError(f"data.tasks={list(tasks)}: merging takes two tasks or more")

    def prepare(self, stage: str) -> None:
        """Open the zoo, stack the task vectors and make the learner.

        Raises:
            InputError: files are missing or do not fit.
        """
        super().prepare(stage)
        tasks = self.data.tasks
        if hasattr(self, "learner"):
            return
        base, experts = self.zoo.open(self.encoder, tasks)
        vectors = TaskVectors(base, experts)
        check_memory(vectors, self.trainer)
        for transform in self.transforms:
            vectors = transform(vectors)
        self.stacked = StackedTaskVectors(vectors)
        self.learner = self.make_learner(base, experts)
        self.open_heads(self.zoo.heads)
        self.base, self.experts = base, experts
        paths = {task: Path(self.zoo.expert(task)) for task in tasks}
        for candidate in bounds(Path(self.zoo.base), paths):
            self.candidates[candidate.name] = candidate

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the learner's state alone."""
        return self.learner.state_dict(prefix="learner.")

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the learner's state, strictly.

        Raises:
            InputError: it is another learner's.
        """
        self._merged = None
        state = {name.removeprefix("learner."): value for name, value in state_dict.items()}
        with self.ranks.agreed():
            try:
                return self.learner.load_state_dict(state)
            except RuntimeError as fault:
                raise InputError(
                    f"the checkpoint is of another learner than the model's; {fault}"
                ) from fault

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the time spent."""
        checkpoint["seconds"] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting the time."""
        self.seconds = checkpoint["seconds"]

    def on_fit_start(self) -> None:
        """Move the task vectors, which are no module state, to the device; start the clock."""
        self._started = time.perf_counter()
        self.stacked.to(self.device)

    def on_train_epoch_end(self) -> None:
        """Add the epoch's time to what earlier epochs, and interrupted sessions, took."""
        now = time.perf_counter()
        self.seconds += now - self._started
        self._started = now

    # The merged network

    def coefficients(self) -> Tensor:
        """Return the coefficients [K, L], rows as `stacked.tasks`, columns as `stacked.names`.

        They are in float32 whatever the precision of the run.
        """
        with torch.autocast(self.device.type, enabled=False):
            return self.learner()

    def merged(self) -> dict[str, Tensor]:
        """Return the merged weights; outside of training they are merged once and kept."""
        with torch.autocast(self.device.type, enabled=False):  # mixed precision rounds no weight
            if torch.is_grad_enabled():
                self._merged = None
                return self.stacked.merge(self.coefficients())
            if self._merged is None:
                self._merged = self.stacked.to(self.device).merge(self.coefficients())
            return self._merged

    def features(self, images: Tensor) -> Tensor:
        """Map normalised images to features by the merged network."""
        return self.encoder.functional(self.merged(), images)

    def training_step(self, batch: Mapping[str, Batch], batch_idx: int) -> Tensor:
        """Return the loss, averaged over tasks."""
        losses = {
            task: self.task_loss(task, self.heads[task](features).float(), batch[task])
            for task, features in self.task_features(batch).items()
        }
        every = torch.stack(list(losses.values()))
        found = self.trainer.strategy.reduce(every.detach().clone(), reduce_op="mean")
        mean = found.mean()
        self.log("train/loss", mean, prog_bar=True, batch_size=1)
        epoch: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True}
        self.log("train/loss_epoch", mean, batch_size=1, **epoch)
        values = zip(losses, found, strict=True)
        self.log_dict({f"train/loss/{task}": value for task, value in values}, batch_size=1)
        return every.mean()

    # Results

    @torch.no_grad()
    def on_fit_end(self) -> None:
        """Save coefficients.safetensors and the merged network, a candidate of its own.

        Raises:
            InputError: learning has diverged.
        """
        path = self.run_folder / "merged" / f"{self.name}.safetensors"
        self._merged = None
        values = self.coefficients().cpu()
        self.stacked.to("cpu")  # evaluation wants the device
        self.ranks.once(lambda: self._save(values, path))
        untrained = (
            "" if self.trainer.global_step else "as it starts: no step of training was taken"
        )
        note = "; ".join(filter(None, [self.note, untrained]))
        self.candidates[self.name] = Candidate(self.name, path, seconds=self.seconds, note=note)

    def _save(self, values: Tensor, path: Path) -> None:
        if not values.isfinite().all():
            raise InputError(f"{self.name}: the coefficients are not finite; lower learning_rate")
        metadata = {
            "method": type(self).__name__,
            "hyperparameters": json.dumps(self.hyperparameters()),
            "tasks": json.dumps(self.stacked.tasks),
            "layers": json.dumps(self.stacked.names),
            "version": __version__,
            **self.zoo.hashes(self.stacked.tasks),
        }
        file = self.run_folder / "coefficients.safetensors"
        save_checkpoint({"coefficients": values}, file, metadata=metadata)
        save_checkpoint(self.stacked.merge(values), path, metadata=metadata)

    @property
    def run_folder(self) -> Path:
        """Folder of the run."""
        return Path(self.trainer.default_root_dir)
