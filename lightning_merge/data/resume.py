"""How a run goes on from a checkpoint with the very batches that it would have had without."""

import warnings
from typing import Any, NamedTuple

from lightning.pytorch import Trainer


class Position(NamedTuple):
    """Where fit stands when its loaders are made.

    Attributes:
        epoch: The epoch that comes next, or goes on.
        taken: Batches of it that have been trained on.
    """

    epoch: int = 0
    taken: int = 0

    @classmethod
    def of(cls, trainer: Trainer | None) -> "Position":
        """Return that of a trainer; the start without one."""
        if trainer is None:
            return cls()
        loop: Any = trainer.fit_loop
        epoch, batches = loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress
        if not loop.restarting:
            return cls(epoch)
        return cls(epoch + 1) if batches.is_last_batch else cls(epoch, batches.current.processed)


START = Position()


def count_epochs(trainer: Trainer) -> None:
    """Have a trainer go on from an epoch's end with the next epoch.

    With `max_steps` Lightning (2.6) believes every checkpoint to be from within an epoch, and takes
    a step more of the one that has ended. Nor does it know that loaders start at a `Position`.
    """
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the")
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def leave_open(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Mark an epoch that was cut short in a checkpoint as one that goes on.

    `max_steps`, `max_time` or a callback have ended it. Lightning takes it for finished, and a run
    with a later end would begin another one. Batches that wait for others, to make a step together,
    count as not taken, since their gradients are lost.

    Args:
        trainer: Makes the checkpoint.
        checkpoint: Changed in place.
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
