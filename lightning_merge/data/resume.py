"""Resuming a run from a checkpoint with the batches of an uninterrupted one."""

import warnings
from typing import Any, NamedTuple

from lightning.pytorch import Trainer


class Position(NamedTuple):
    """Progress of `fit` when its loaders are made.

    Attributes:
        epoch: Epoch to begin or to continue.
        taken: Batches of this epoch that have been trained on.

    Examples:
        >>> Position(epoch=2, taken=5).taken, Position.of(None)
        (5, Position(epoch=0, taken=0))
    """

    epoch: int = 0
    taken: int = 0

    @classmethod
    def of(cls, trainer: Trainer | None) -> "Position":
        """Return the position of a trainer; the start without one."""
        if trainer is None:
            return cls()
        loop: Any = trainer.fit_loop
        epoch, batches = loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress
        if not loop.restarting:
            return cls(epoch)
        return cls(epoch + 1) if batches.is_last_batch else cls(epoch, batches.current.processed)


START = Position()


def count_epochs(trainer: Trainer) -> None:
    """Have a trainer resume from the end of an epoch with the next epoch.

    With `max_steps`, Lightning (2.6) takes every checkpoint to be from within an epoch and makes
    another step of one that has ended. It also warns, as it cannot know that loaders start at a
    `Position`.

    Args:
        trainer: Changed in place.

    Examples:
        >>> trainer = Trainer(max_steps=3, accelerator="cpu", logger=False)
        >>> count_epochs(trainer)
        >>> trainer.fit_loop._iteration_based_training()
        False
    """
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the")
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def leave_open(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Mark an epoch that was cut short as unfinished in a checkpoint.

    Lightning takes an epoch that `max_steps`, `max_time` or a callback ended for finished, so a
    run that is resumed with a later end would begin another one. Batches whose gradients were
    still accumulating count as not taken, since their gradients are lost.

    Args:
        trainer: Trainer that makes the checkpoint.
        checkpoint: Changed in place.

    Examples:
        >>> trainer = Trainer(accelerator="cpu", logger=False)
        >>> checkpoint = {}
        >>> leave_open(trainer, checkpoint)  # no batch was taken, so nothing changes
        >>> checkpoint
        {}
    """
    loop = trainer.fit_loop.epoch_loop
    taken = loop.batch_progress.current.ready
    if taken == 0 or loop._num_ready_batches_reached():
        return
    state = checkpoint["loops"]["fit_loop"]
    for progress in state["epoch_progress"].values():
        progress["processed"] = progress["completed"] = progress["started"] - 1
    waiting = taken % trainer.accumulate_grad_batches
    for count in ("total", "current"):
        progress = state["epoch_loop.batch_progress"][count]
        progress.update({name: value - waiting for name, value in progress.items()})
