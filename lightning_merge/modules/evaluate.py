"""Measure weights on every task: what the table is made of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_merge.data.dataset import Batch
from lightning_merge.evaluation.candidates import Candidate
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.base import TaskModule


class Evaluate(TaskModule):
    """Test one set of weights, or one per task, with the frozen heads.

    Args:
        encoder: architecture of the weights.
        heads: file of the heads of the tasks.
        weights: file for all tasks, or a mapping from task to file.
    """

    def __init__(self, encoder: Encoder, heads: str, weights: str | dict[str, str]) -> None:
        super().__init__(encoder)
        self.heads_file = heads
        files: Any = (
            Path(weights)
            if isinstance(weights, str)
            else {task: Path(file) for task, file in weights.items()}
        )
        self.candidate = Candidate("weights", files)
        self._loaded: Path | None = None
        self.requires_grad_(False)

    def input_files(self, tasks: Sequence[str]) -> list[str]:
        """Return heads and weights."""
        weights = [str(self.candidate.file(task)) for task in tasks]
        return [self.heads_file, *dict.fromkeys(weights)]

    def prepare(self, stage: str) -> None:
        """Load the heads of the tasks."""
        super().prepare(stage)
        self.open_heads(self.heads_file)

    def show(self, candidate: Candidate) -> None:
        """Measure another candidate from now on."""
        self.candidate = candidate
        self._loaded = None

    def logits(self, batch: Batch, dataloader_idx: int) -> Tensor:
        """Load the weights that answer for the task and return the logits."""
        self._load(dataloader_idx)
        return super().logits(batch, dataloader_idx)

    def _load(self, dataloader_idx: int) -> None:
        file = self.candidate.file(self.data.tasks[dataloader_idx])
        if file != self._loaded:
            self.encoder.load(file)
            self._loaded = file
