"""Evaluation of weights on every task, for the table of results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.errors import InputError
from lightning_merge.data.dataset import Batch
from lightning_merge.data.joint import JointLabels
from lightning_merge.evaluation.candidates import Candidate
from lightning_merge.methods.network import Recalibrate, TaskNetwork, holds_network, load_network
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.base import TaskModule
from lightning_merge.modules.counting import filled
from lightning_merge.modules.heads import HeadFiles, head_files


class Evaluate(TaskModule):
    """Evaluation of weights for all tasks, weights per task, or a network of several experts.

    Heads are frozen.

    Args:
        encoder: Architecture of the weights.
        heads: File of the heads of the tasks, or one file per task, see `Zoo`.
        weights: File of weights, or of a network that `save_network` wrote, for all tasks; or a
            mapping from task to file.

    Examples:
        >>> from lightning_merge.models import MiniViT
        >>> experts = {"cars": "cars.safetensors", "pets": "pets.safetensors"}
        >>> Evaluate(MiniViT(depth=1), "heads.safetensors", experts).input_files(["pets"])
        ['heads.safetensors', 'pets.safetensors']
    """

    heads_files: HeadFiles

    def __init__(self, encoder: Encoder, heads: HeadFiles, weights: str | dict[str, str]) -> None:
        super().__init__(encoder)
        self.heads_files = heads
        files: Any = (
            Path(weights)
            if isinstance(weights, str)
            else {task: Path(file) for task, file in weights.items()}
        )
        self.candidate = Candidate("weights", files)
        self._loaded: Path | None = None
        self._recalibrate: Recalibrate | None = None
        self.network: TaskNetwork | None = None
        self.requires_grad_(False)

    def input_files(self, tasks: Sequence[str]) -> list[str]:
        """Return heads and weights."""
        weights = [str(self.candidate.file(task)) for task in tasks]
        return [*head_files(self.heads_files, tasks), *dict.fromkeys(weights)]

    def prepare(self, stage: str) -> None:
        """Load the heads of the tasks.

        Raises:
            InputError: There are weights per task, but none for some task.
        """
        super().prepare(stage)
        files = self.candidate.weights
        if not isinstance(files, Path) and (
            lacking := [task for task in self.data.evaluated if task not in files]
        ):
            raise InputError(
                f"model.weights has files for {enumerate_names(files)}, not for "
                f"{enumerate_names(lacking)}; add them, or give one file, which is measured on all "
                "tasks and out of domain"
            )
        self.open_heads(self.heads_files)

    def show(self, candidate: Candidate, recalibrate: Recalibrate | None = None) -> None:
        """Evaluate another candidate from now on.

        Args:
            candidate: The candidate.
            recalibrate: Gives its weights other BatchNorm statistics, see `HeldOut.recalibrate`.
        """
        self.candidate, self._recalibrate = candidate, recalibrate
        self._loaded = None

    @property
    def joint(self) -> JointLabels | None:
        """None if the weights, or the network, depend on being told the task."""
        told = self.network is not None and self.network.told_task
        return super().joint if isinstance(self.candidate.weights, Path) and not told else None

    def evaluate(self, part: str, batch: Batch, dataloader_idx: int) -> None:
        """Load the weights of the task, if necessary, and count the right predictions."""
        self._load(dataloader_idx)
        super().evaluate(part, batch, dataloader_idx)

    def through_heads(
        self, batch: Batch, dataloader_idx: int, heads: Sequence[nn.Module]
    ) -> list[Tensor]:
        """Load the weights of the task, if necessary, and return what the heads make of them."""
        self._load(dataloader_idx)
        if self.network is None:
            return super().through_heads(batch, dataloader_idx, heads)
        task, images = self.data.evaluated[dataloader_idx], filled(batch).inputs
        return [self.network.logits(task, images, head) for head in heads]

    def batch_features(self, batch: Batch, dataloader_idx: int) -> Tensor:
        """Load the weights of the task, if necessary, and return their features of the batch."""
        self._load(dataloader_idx)
        if self.network is None:
            return super().batch_features(batch, dataloader_idx)
        return self.network.features(self.data.evaluated[dataloader_idx], filled(batch).inputs)

    def written(self, batch: Batch, dataloader_idx: int) -> Tensor | None:
        """Return what the weights loaded last write; None for a network of several experts."""
        return super().written(batch, dataloader_idx) if self.network is None else None

    def _load(self, dataloader_idx: int) -> None:
        file = self.candidate.file(self.data.evaluated[dataloader_idx])
        if file == self._loaded:
            return
        self.network = None
        if holds_network(file):
            backbone, project = self.encoder.backbone, self.encoder.project
            self.network = load_network(file, backbone, project).to(self.device)
        else:
            self.encoder.load(file)
            if self._recalibrate is not None:
                backbone = self.encoder.backbone
                backbone.load_state_dict(self._recalibrate(backbone.state_dict()))
        self._loaded = file
