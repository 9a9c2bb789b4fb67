"""Lightning's passes over the data as loops of the display."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from lightning_merge.core.progress import Advance, progress


class Bar(ProgressBar):
    """Tells the display of epochs, steps and passes, and how many images are in them.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(accelerator="cpu", logger=False, callbacks=[Bar()])
        >>> type(trainer.progress_bar_callback).__name__
        'Bar'
    """

    def __init__(self) -> None:
        super().__init__()
        self._epochs, self._steps, self._pass = ExitStack(), ExitStack(), ExitStack()
        self._advance: dict[str, Advance] = {}
        self._by_epoch = False

    def disable(self) -> None:
        """Do nothing: the display of another process shows nothing by itself."""

    def enable(self) -> None:
        """Do nothing."""

    # Learning

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the loop of epochs, or of steps if these end the training."""
        self._by_epoch = (trainer.max_epochs or -1) > 0 and trainer.max_steps < 0
        if self._by_epoch:
            epochs, done = int(trainer.max_epochs or 0), trainer.current_epoch
            self._advance["epoch"] = self._epochs.enter_context(
                progress(epochs, "epoch", done=done)
            )
        else:
            every, unit = trainer.accumulate_grad_batches, _unit(pl_module)
            total, done = max(0, trainer.max_steps) * every, trainer.global_step * every
            self._advance["train"] = self._steps.enter_context(progress(total, "steps", unit, done))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the loop of an epoch's steps."""
        if self._by_epoch:
            total = _whole([trainer.num_training_batches])
            shown = progress(total, "", _unit(pl_module))
            self._advance["train"] = self._steps.enter_context(shown)

    def on_train_batch_end(self, trainer: Trainer, *about: Any) -> None:
        """Count a step and its images."""
        self._step("train", trainer, about[2])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count an epoch."""
        if self._by_epoch:
            self._steps.close()
            self._advance["epoch"](1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the loops of learning."""
        self._close()

    # Passes

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a pass over held-out examples."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else None
        self._begin(pl_module, trainer.num_val_batches if batches is None else batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a pass over test examples."""
        self._begin(pl_module, trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a pass of predictions."""
        self._begin(pl_module, trainer.num_predict_batches)

    def on_validation_batch_end(self, trainer: Trainer, *about: Any) -> None:
        """Count a batch."""
        self._step("pass", trainer, about[2])

    def on_test_batch_end(self, trainer: Trainer, *about: Any) -> None:
        """Count a batch."""
        self._step("pass", trainer, about[2])

    def on_predict_batch_end(self, trainer: Trainer, *about: Any) -> None:
        """Count a batch."""
        self._step("pass", trainer, about[2])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a pass."""
        self._pass.close()

    on_test_end = on_predict_end = on_validation_end

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """End all loops."""
        self._close()

    def _begin(self, module: LightningModule, batches: Iterable[float]) -> None:
        shown = getattr(module, "candidate", None)
        what = "measuring" if shown is None else f"measuring {shown.name}"
        self._advance["pass"] = self._pass.enter_context(
            progress(_whole(batches), what, _unit(module))
        )

    def _step(self, loop: str, trainer: Trainer, batch: Any) -> None:
        self._advance[loop](1, _count(batch) * trainer.world_size)

    def _close(self) -> None:
        for shown in (self._pass, self._steps, self._epochs):
            shown.close()
        self._advance.clear()


def _whole(batches: Iterable[float]) -> int:
    """Return the number of batches; 0 if it is unknown."""
    total = sum(batches)
    return int(total) if total < float("inf") else 0


def _unit(module: LightningModule) -> str:
    return str(getattr(getattr(module, "preprocess", None), "kind", "images"))


def _count(batch: Any) -> int:
    """Return the number of examples of a step."""
    if isinstance(batch, Mapping):
        return sum(map(_count, batch.values()))
    return len(getattr(batch, "labels", ()))
