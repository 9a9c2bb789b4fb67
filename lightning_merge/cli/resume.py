"""The checkpoint of a run folder: how it is written, and whether a run may resume from it."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_merge.core.checkpoints.files import atomic_write, remove_leftovers
from lightning_merge.core.errors import InputError
from lightning_merge.runs import record
from lightning_merge.runs.folder import RunFolder


class LastCheckpoint(ModelCheckpoint):
    """Save the state at the end of each epoch in checkpoints/last.ckpt of a run folder.

    This is a separate class so that a user's ModelCheckpoint does not share its state.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(  # `save_last` with no other checkpoint would only save at the end
            folder / "checkpoints",
            filename="last",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints atomically, even if /tmp is on another disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; if the process is killed, the previous one remains."""
        path = Path(path)
        remove_leftovers(path.parent, rf"\.{path.stem}\.[0-9a-f]{{8}}\.tmp{path.suffix}")
        with atomic_write(path) as temporary:
            torch.save(checkpoint, temporary)


def check_given(path: str) -> None:
    """Check a checkpoint given by the user.

    Raises:
        InputError: It is missing, is not a Lightning checkpoint, or has diverged.
    """
    if path in ("best", "hpc") or path.startswith("registry"):
        raise InputError(
            f"ckpt_path={path!r}: a run keeps one checkpoint; give last, which is its "
            "checkpoints/last.ckpt, or the path of another run's"
        )
    if Path(path).is_dir():  # of shards
        return
    if not Path(path).exists():
        raise InputError(f"ckpt_path={path!r} does not exist; give a checkpoint of a run")
    checkpoint = _read(Path(path))
    if checkpoint is None:
        raise InputError(
            f"ckpt_path={path!r} is not a checkpoint of Lightning; give the checkpoints/last.ckpt "
            "of a run folder"
        )
    if tensor := _diverged(checkpoint):
        raise InputError(f"ckpt_path={path!r}: {tensor} is not finite; give an earlier checkpoint")


def obstacle(folder: RunFolder, trainer: Trainer, end_counts: bool) -> str | None:
    """Return why a run must not resume from its checkpoint; None if it may.

    Args:
        folder: Run folder, resolved; its checkpoint exists.
        trainer: Trainer of the run.
        end_counts: Whether training steps depend on when training ends.
    """
    file, before, now = folder.last, folder.before, folder.now
    if record.learning(before) != record.learning(now):
        return "is of another configuration or other inputs"
    if end_counts and (other := record.other_end(before, now)):
        return (
            f"was trained to another end, which the learning rate follows: {other}. To go on from "
            f"it all the same, stop here and give --ckpt_path {file}"
        )
    if file.is_dir():  # of shards
        return None
    checkpoint = _read(file)
    if checkpoint is None:
        return "cannot be read"
    if tensor := _diverged(checkpoint):
        return f"has diverged ({tensor} is not finite)"
    if _is_beyond(checkpoint, trainer):
        return "has learned for longer than trainer.max_epochs or trainer.max_steps say"
    return None


def forget_requeued(folder: Path) -> None:
    """Remove the mid-epoch checkpoints that Lightning saves when SLURM requeues a job.

    Lightning would resume from them whenever no other checkpoint is given.
    """
    for file in folder.glob("hpc_ckpt_*.ckpt"):
        file.unlink()


def _read(file: Path) -> dict[str, Any] | None:
    """Return the content of a Lightning checkpoint; None if the file is not one."""
    try:
        found = torch.load(file, "cpu", weights_only=True, mmap=True)
    except Exception:  # other files may raise anything
        return None
    return found if "pytorch-lightning_version" in found else None


def _diverged(checkpoint: dict[str, Any]) -> str | None:
    """Return the first learned tensor with a NaN or an infinite entry; None if there is none."""
    for name, tensor in checkpoint["state_dict"].items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return str(name)
    return None


def _is_beyond(checkpoint: dict[str, Any], trainer: Trainer) -> bool:
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["started"]
    ends = ((epochs, trainer.max_epochs), (checkpoint["global_step"], trainer.max_steps))
    return any(end is not None and 0 <= end < reached for reached, end in ends)
