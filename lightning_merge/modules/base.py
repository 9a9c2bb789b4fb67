"""What every training and evaluation module shares: encoder, heads, metrics, logging."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.data.dataset import Batch
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.preprocess import Preprocess


class TaskModule(LightningModule):
    """An encoder with one head per task.

    Subclasses say how features are made (`features`) and what is trained. Images arrive as
    uint8 and are normalised on the device; every part of the data has one accuracy per task.

    Args:
        encoder: image encoder whose backbone is trained or merged.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict()
        self.metrics = nn.ModuleDict()

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of the encoder."""
        return self.encoder.preprocess

    @property
    def data(self) -> MergeDataModule:
        """The trainer's data module."""
        return self.trainer.datamodule  # type: ignore[attr-defined, no-any-return]

    def setup(self, stage: str) -> None:
        """Make one accuracy per task and part of the data."""
        for task in self.data.tasks:
            classes = len(self.data.classes[task])
            for part in ("train", "val", "test"):
                key = f"{part}/{task}"
                if key not in self.metrics:
                    self.metrics[key] = MulticlassAccuracy(classes, average="micro")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise the uint8 images of a batch, or of a batch per task, on the device."""
        if isinstance(batch, Batch):
            return batch._replace(images=self.preprocess.normalize(batch.images))
        if isinstance(batch, Mapping):
            return {k: self.on_after_batch_transfer(v, dataloader_idx) for k, v in batch.items()}
        return batch

    def features(self, images: Tensor) -> Tensor:
        """Map normalised images [n, 3, s, s] to features [n, dim]."""
        return self.encoder(images)

    def task_features(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Encode the images of all tasks in one forward pass."""
        sizes = [len(batch.labels) for batch in batches.values()]
        features = self.features(torch.cat([batch.images for batch in batches.values()]))
        return dict(zip(batches, features.split(sizes), strict=True))

    def evaluate(self, part: str, batch: Batch, dataloader_idx: int) -> None:
        """Count the right predictions of one batch of one task."""
        task = self.data.tasks[dataloader_idx]
        logits = self.heads[task](self.features(batch.images))
        self.metrics[f"{part}/{task}"].update(logits, batch.labels)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count right predictions on held-out images."""
        self.evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count right predictions on test images."""
        self.evaluate("test", batch, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the predicted class of every image."""
        return self.heads[self.data.tasks[dataloader_idx]](self.features(batch.images)).argmax(1)

    def accuracies(self, part: str) -> dict[str, float]:
        """Return accuracy per task of the last evaluation and start the next one."""
        result = {}
        for task in self.data.tasks:
            metric = self.metrics[f"{part}/{task}"]
            result[task] = float(metric.compute())
            metric.reset()
        return result

    def _log_accuracies(self, part: str) -> dict[str, float]:
        accuracy = self.accuracies(part)
        self.log_dict({f"{part}/{task}": value for task, value in accuracy.items()})
        self.log(f"{part}/average", sum(accuracy.values()) / len(accuracy), prog_bar=True)
        return accuracy

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy of every task and their average."""
        self._log_accuracies("val")

    def on_test_epoch_end(self) -> None:
        """Keep and log the accuracy of every task and their average."""
        self.test_accuracy = self._log_accuracies("test")
