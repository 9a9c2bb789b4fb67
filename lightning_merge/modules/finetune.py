"""Training of one encoder: an expert of one task, a multi-task network, or a base."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn import functional as F

from lightning_merge import __version__
from lightning_merge.core.checkpoints.checkpoint import save_checkpoint
from lightning_merge.core.checkpoints.digests import file_hash
from lightning_merge.core.checks import require_choice, require_in
from lightning_merge.core.errors import InputError
from lightning_merge.core.seeding import generator_for
from lightning_merge.data.augment import Augment, Draws
from lightning_merge.data.dataset import Batch
from lightning_merge.data.tasks import task_spec
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.heads import LinearHead
from lightning_merge.modules.base import TaskModule
from lightning_merge.modules.heads import HeadFiles, check_heads, head_files, heads_hash

SHARDED = "_fsdp_wrapped_module."
"""Part that FSDP adds to the names of parameters."""


class FineTune(TaskModule):
    """Training of an encoder by cross-entropy on the train split of one task or more.

    With `heads` the classifiers are loaded and stay frozen, like zero-shot heads, so that the
    encoder has all changes and can be merged. Without `heads`, a linear head per task is trained
    as well and then dropped, to pretrain a base.

    A run that is resumed from a checkpoint on as many processes ends with exactly the weights of
    an uninterrupted one, if the encoder draws no random numbers (dropout). N processes train like
    one with N times the batch size. FSDP shards the network; the output file is whole.

    Args:
        encoder: Network to train.
        output: File that receives the backbone's weights (safetensors).
        base: Weights to start from; the encoder's own if None.
        heads: File of frozen heads of the tasks, or one file per task, see `Zoo`.
        learning_rate: Learning rate of AdamW, after the warm-up and before the cosine decay.
        weight_decay: Weight decay of AdamW, only for matrices.
        warmup: Share of the steps with a rising learning rate.
        label_smoothing: Label smoothing of the cross-entropy.
        augment: Random changes of the training images.
        update_statistics: Let BatchNorm normalise by each batch of each process and keep the
            running statistics of process zero, as pretraining needs. Otherwise the network is
            trained with its initial statistics.
        storage: Data type of the output file: "float32", "float16" or "bfloat16".
        metadata: Entries to add to the output file's metadata.
        overwrite: Replace the output if it exists.

    Raises:
        InputError: The storage is unknown, a number is out of range, the heads lack a task, or the
            output exists.

    Examples:
        >>> from lightning_merge.models import MiniViT
        >>> module = FineTune(MiniViT(depth=1), "cars.safetensors", heads="head_{task}.pt")
        >>> module.input_files(["cars"])
        ['head_cars.pt']
    """

    strategies: ClassVar[tuple[type, ...]] = (SingleDeviceStrategy, DDPStrategy, FSDPStrategy)

    def __init__(
        self,
        encoder: Encoder,
        output: str,
        base: str | None = None,
        heads: HeadFiles | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        label_smoothing: float = 0.0,
        augment: Augment | None = None,
        update_statistics: bool = False,
        storage: str = "float32",
        metadata: dict[str, str] | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__(encoder)
        require_choice(("float32", "float16", "bfloat16"), storage=storage)
        require_in("[0, inf]", learning_rate=learning_rate, weight_decay=weight_decay)
        require_in("[0, 1]", warmup=warmup, label_smoothing=label_smoothing)
        if base is not None:
            encoder.load(base)
        self.output, self.base, self.heads_files, self.storage = output, base, heads, storage
        self.learning_rate, self.weight_decay, self.warmup = learning_rate, weight_decay, warmup
        self.label_smoothing, self.augment = label_smoothing, augment
        self.metadata, self.overwrite = metadata or {}, overwrite
        self.update_statistics = encoder.update_statistics = (
            update_statistics or encoder.update_statistics
        )

    def input_files(self, tasks: Sequence[str]) -> list[str]:
        """Return base and heads, if they are given."""
        heads = [] if self.heads_files is None else head_files(self.heads_files, tasks)
        return [*([] if self.base is None else [self.base]), *heads]

    def hashes(self) -> dict[str, str]:
        """Return the hashes of base and heads, if they are given."""
        hashes = {} if self.base is None else {"base": file_hash(self.base)}
        if self.heads_files is not None:
            hashes["heads"] = heads_hash(self.heads_files, self.data.tasks)
        return hashes

    def check(self, trainer: Trainer, tasks: Sequence[str], stage: str) -> None:
        """Check what is possible before any file is opened.

        Raises:
            InputError: The output exists, heads are missing, the trainer's strategy is not
                supported, or its end is unknown.
        """
        super().check(trainer, tasks, stage)
        if self.heads_files is not None:
            check_heads("model.heads", self.heads_files, tasks)
        if stage == "fit" and trainer.max_epochs == -1 and trainer.max_steps == -1:
            raise InputError(
                "trainer.max_epochs=-1: the learning rate decays until the last step; give "
                "trainer.max_epochs or max_steps"
            )
        if stage == "fit" and Path(self.output).exists() and not self.overwrite:
            raise InputError(
                f"model.output={self.output!r} exists: give another path or --model.overwrite true"
            )

    def prepare(self, stage: str) -> None:
        """Load the frozen heads, or make one trainable linear head per task."""
        super().prepare(stage)
        self.train(stage == "fit")
        self._seed = self.ranks.gather(torch.initial_seed())[0]
        self._hashes = self.hashes()
        if not self.heads:
            self._check_trained_heads()
            self._make_heads()
        # Shards of parameters are vectors, so matrices are recorded before sharding.
        self._matrices = {name for name, p in self.named_parameters() if p.ndim > 1}

    def _check_trained_heads(self) -> None:
        for option in ("unseen", "out_of_domain") if self.heads_files is None else ():
            if names := getattr(self.data, option):
                raise InputError(
                    f"data.{option}={list(names)} without model.heads: the heads of these tasks "
                    "would stay untrained; give a file of frozen heads"
                )

    def _make_heads(self) -> None:
        if self.heads_files is not None:
            self.open_heads(self.heads_files)
            return
        for task, classes in self.data.classes.items():
            examples, _ = self.data.division.part(task, "train")
            width = self.encoder.width(self.preprocess.shape(examples.parts, examples.answers))
            if self.encoder.ranks:  # features are logits
                self.heads[task] = LinearHead(torch.eye(width))
            else:
                self.heads[task] = nn.Linear(width, len(classes))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Leave training batches to `training_step`, which augments and finishes them."""
        if self.trainer.training:
            return batch
        return super().on_after_batch_transfer(batch, dataloader_idx)

    def augmented(self, task: str, batch: Batch, batch_idx: int) -> Batch:
        """Augment and finish a task's training batch.

        The augmentation depends only on the run's seed, the task, the epoch, the step and the
        process.
        """
        inputs = batch.inputs
        if self.augment is not None:
            when = (str(self.current_epoch), str(batch_idx))
            draws = Draws(generator_for(self._seed, "augment", task, *when), self.ranks)
            inputs = self.augment(inputs, mirror=task_spec(task).mirror, draws=draws)
        return batch._replace(inputs=self.preprocess.finish(inputs))

    def training_step(self, batch: Mapping[str, Batch], batch_idx: int) -> Tensor:
        """Return the mean loss over the examples of all tasks."""
        batch = {task: self.augmented(task, b, batch_idx) for task, b in batch.items()}
        total, count = torch.zeros((), device=self.device), 0
        for task, features in self.task_features(batch).items():
            logits = self.heads[task](features).float()
            total = total + self.summed_loss(task, logits, batch[task])
            count += len(logits)
            self.counts("train", task).update(logits.detach(), batch[task].labels)
        loss = total / count
        self.log("train/loss", loss, prog_bar=True, batch_size=count, sync_dist=True)
        return loss

    def summed_loss(self, task: str, logits: Tensor, batch: Batch) -> Tensor:
        """Return the summed cross-entropy of one task's examples."""
        return F.cross_entropy(
            logits, batch.labels, reduction="sum", label_smoothing=self.label_smoothing
        )

    def learned(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that training changes, by name."""
        yield from super().learned()
        if self.update_statistics:
            named = self.encoder.backbone.named_buffers()
            yield from ((n, t) for n, t in named if n.endswith(("running_mean", "running_var")))

    def on_train_epoch_end(self) -> None:
        """Log the accuracy on the augmented training images."""
        super().on_train_epoch_end()
        self.close("train")

    def configure_optimizers(self) -> Any:
        """Return AdamW with a linear warm-up and a cosine decay over all steps."""
        parameters = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        decayed = [p for n, p in parameters if n.replace(SHARDED, "") in self._matrices]
        others = [p for n, p in parameters if n.replace(SHARDED, "") not in self._matrices]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
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
        """Write the trained backbone; Lightning does not call this in an interrupted run."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.check_finite()  # a callback may have averaged it
        state = self._whole_backbone()
        self.ranks.once(lambda: self._save(state))

    def _whole_backbone(self) -> dict[str, Tensor]:
        """Return the backbone's tensors; shards are gathered in process zero only."""
        if not isinstance(self.trainer.strategy, FSDPStrategy):
            return self.encoder.backbone.state_dict()
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        module = self.trainer.strategy.model
        assert module is not None
        prefix = "encoder.backbone."
        whole = cast(dict[str, Tensor], get_model_state_dict(module, options=options))
        return {n.removeprefix(prefix): t for n, t in whole.items() if n.startswith(prefix)}

    def _save(self, state: Mapping[str, Tensor]) -> None:
        stored = {name: self._narrowed(name, t.detach().cpu()) for name, t in state.items()}
        save_checkpoint(stored, Path(self.output), metadata=self._provenance() | self.metadata)

    def _narrowed(self, name: str, tensor: Tensor) -> Tensor:
        """Convert a tensor of the state to the data type of the output file.

        Raises:
            InputError: An entry is too large for the data type.
        """
        if not tensor.is_floating_point():
            return tensor
        stored = tensor.to(getattr(torch, self.storage))
        if not stored.isfinite().all() and tensor.isfinite().all():
            raise InputError(
                f"model.storage={self.storage!r} cannot hold {name}, whose entries reach "
                f"{tensor.abs().max():g}; give bfloat16 or float32. The training is not lost: the "
                "same command with another storage writes its result"
            )
        return stored

    def hyperparameters(self) -> dict[str, Any]:
        """Return the options of the training, for the metadata of the weights' file."""
        names = ("learning_rate", "weight_decay", "warmup", "label_smoothing", "storage")
        options = {name: getattr(self, name) for name in (*names, "update_statistics")}
        return {
            **options,
            "augment": repr(self.augment),
            "batch_size": self.data.batch_size,
            "sampling": self.data.sampling,
            "processes": self.ranks.size,
            "epochs": self.trainer.fit_loop.epoch_progress.total.ready,
            "steps": self.trainer.global_step,
        }

    def _provenance(self) -> dict[str, str]:
        """Return the origin of the weights, for the metadata of their file."""
        return {
            "method": type(self).__name__,
            "hyperparameters": json.dumps(self.hyperparameters()),
            "tasks": json.dumps(list(self.data.seen)),
            "images": json.dumps({task: self.data.digest(task) for task in self.data.seen}),
            "seed": str(self._seed),
            "version": __version__,
            **self.encoder.described,
            **self._hashes,
        }
