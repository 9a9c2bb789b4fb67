"""Train one encoder: an expert of one task, a multi-task network, or a base to fine-tune."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_merge.core.checkpoint import save_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.data.augment import Augment
from lightning_merge.data.dataset import Batch
from lightning_merge.data.tasks import task_spec
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.base import TaskModule


class FineTune(TaskModule):
    """Train an encoder by cross-entropy on the train split of one or more tasks.

    With `heads` the classifiers are loaded and stay frozen, as zero-shot heads do, so that all
    change is in the encoder and can be merged. Without, a linear head per task is trained
    along and dropped: the way to pretrain a base.

    Args:
        encoder: network to train.
        output: file that receives the backbone's weights (safetensors).
        base: weights to start from; those of the encoder itself without.
        heads: file of frozen heads of the tasks.
        learning_rate: of AdamW, after the warm-up and before the cosine decay.
        weight_decay: of AdamW, for matrices only.
        warmup: share of the steps with a rising learning rate.
        label_smoothing: of the cross-entropy.
        augment: random changes of the training images.
        storage: "float32", "float16" or "bfloat16" of the output file.
        metadata: written into the output file.
        overwrite: replace the output if it exists.

    Raises:
        InputError: an unknown storage, heads that lack a task, or an output that exists.
    """

    def __init__(
        self,
        encoder: Encoder,
        output: str,
        base: str | None = None,
        heads: str | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        label_smoothing: float = 0.0,
        augment: Augment | None = None,
        storage: str = "float32",
        metadata: dict[str, str] | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__(encoder)
        if storage not in ("float32", "float16", "bfloat16"):
            raise InputError(f"storage={storage!r}: use float32, float16 or bfloat16")
        if base is not None:
            encoder.load(base)
        self.output, self.heads_file, self.storage = output, heads, storage
        self.learning_rate, self.weight_decay, self.warmup = learning_rate, weight_decay, warmup
        self.label_smoothing, self.augment = label_smoothing, augment
        self.metadata, self.overwrite = metadata or {}, overwrite

    def setup(self, stage: str) -> None:
        """Load the frozen heads, or make one trainable linear head per task."""
        super().setup(stage)
        if stage == "fit" and Path(self.output).exists() and not self.overwrite:
            raise InputError(
                f"model.output={self.output!r} exists: give another path or --model.overwrite true"
            )
        self.train(stage == "fit")
        if self.heads:
            return
        if self.heads_file is None:
            for task, classes in self.data.classes.items():
                self.heads[task] = nn.Linear(self.encoder.dim, len(classes))
            return
        self.open_heads(self.heads_file)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment training images before they are normalised."""
        if self.augment is not None and self.trainer.training and isinstance(batch, Mapping):
            batch = {
                task: b._replace(images=self.augment(b.images, mirror=task_spec(task).mirror))
                for task, b in batch.items()
            }
        return super().on_after_batch_transfer(batch, dataloader_idx)

    def training_step(self, batch: Mapping[str, Batch], batch_idx: int) -> Tensor:
        """Return the mean cross-entropy over the images of all tasks."""
        total, images = torch.zeros((), device=self.device), 0
        for task, features in self.task_features(batch).items():
            labels = batch[task].labels
            logits = self.heads[task](features).float()
            total = total + F.cross_entropy(
                logits, labels, reduction="sum", label_smoothing=self.label_smoothing
            )
            images += len(labels)
            self.counts("train", task).update(logits.detach(), labels)
        loss = total / images
        self.log("train/loss", loss, prog_bar=True, batch_size=images)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the accuracy on the augmented training images."""
        self.close("train")

    def configure_optimizers(self) -> Any:
        """Return AdamW with a linear warm-up and a cosine decay over all steps."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, self.learning_rate)
        total = int(self.trainer.estimated_stepping_batches)
        rise = max(1, round(self.warmup * total))

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / rise
            return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_fit_end(self) -> None:
        """Write the trained backbone; an interrupted run never comes here."""
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            dtype = getattr(torch, self.storage)
            state = {
                name: tensor.detach()
                .cpu()
                .to(dtype if tensor.is_floating_point() else tensor.dtype)
                for name, tensor in self.encoder.backbone.state_dict().items()
            }
            save_checkpoint(state, Path(self.output), metadata=self.metadata)
        self.trainer.strategy.barrier()
