"""Predictions as a file."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from lightning_merge.core.files import atomic_write


class WritePredictions(BasePredictionWriter):
    """Write predictions.csv into the run folder: task, index of the test image, class."""

    def __init__(self) -> None:
        super().__init__("epoch")

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Write one line per test image, tasks in their order."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        per_task = [predictions] if len(data.tasks) == 1 else predictions
        path = Path(trainer.default_root_dir) / "predictions.csv"
        with atomic_write(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["task", "index", "class"])
            for task, batches in zip(data.tasks, per_task, strict=True):
                classes = [data.classes[task][i] for batch in batches for i in batch.tolist()]
                writer.writerows([task, i, name] for i, name in enumerate(classes))
