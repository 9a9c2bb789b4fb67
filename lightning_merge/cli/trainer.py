"""Check the options and callbacks of Lightning's Trainer before any long work."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    OnExceptionCheckpoint,
    ProgressBar,
    RichProgressBar,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)

from lightning_merge.callbacks import MergeCallback
from lightning_merge.core.checks import require_in
from lightning_merge.core.errors import InputError
from lightning_merge.core.progress import display
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.data.sizes import count_batches
from lightning_merge.modules.bar import Bar
from lightning_merge.modules.base import TaskModule

LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "max_epochs": -1,
    "max_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_sanity_val_steps": -1,
}
"""Numeric trainer options -> their minimum."""

NEEDED = {
    "barebones": (True, "a run keeps metrics and a checkpoint"),
    "enable_checkpointing": (False, "a run keeps checkpoints/last.ckpt to go on from"),
}
"""Trainer switches -> the value they must not have, and why."""

ON_WEIGHTS = (
    BaseFinetuning, BatchSizeFinder, LearningRateFinder, ModelPruning, StochasticWeightAveraging,
    WeightAveraging,
)  # fmt: skip
"""Callbacks that average, prune or freeze a network's weights, or train it for a while first."""


class EpochBar(RichProgressBar):
    """Lightning's progress bar, without a total of epochs if the run ends after some steps."""

    def _get_train_description(self, current_epoch: int) -> str:
        return str(super()._get_train_description(current_epoch)).replace("/-2", "")


def shown_by(options: Mapping[str, Any], callbacks: Sequence[Any]) -> list[Callback]:
    """Return the callbacks that show progress and the model, unless options turn them off.

    A progress bar among the given callbacks is the only one then. With --verbose, Lightning shows
    its own.
    """
    given = {type(callback) for callback in callbacks}
    found: list[Callback] = []
    plain = not getattr(display(), "verbose", False)
    summarised = any(issubclass(kind, ModelSummary) for kind in given)
    if plain and options.get("enable_model_summary") is not False and not summarised:
        found.append(ModelSummary())  # Lightning's default writes tables to the terminal
    if any(issubclass(kind, ProgressBar) for kind in given):
        display().hold_still()
    elif options.get("enable_progress_bar") is not False:
        found.append(Bar() if plain else EpochBar())
    return found


def check_options(options: Mapping[str, Any]) -> None:
    """Check options that can be checked without a Trainer.

    Args:
        options: Trainer options by name.

    Raises:
        InputError: A number is out of range, or options contradict each other or the run.
    """
    for name, least in LEAST.items():
        if (value := options.get(name)) is not None:
            require_in(f"[{least}, inf]", "trainer.", **{name: value})
    for name, (value, why) in NEEDED.items():
        if options.get(name) is value:
            raise InputError(f"trainer.{name}={str(value).lower()}: {why}; leave it out")
    interval = options.get("val_check_interval")
    if isinstance(interval, int | float) and not interval > 0:
        raise InputError(
            f"trainer.val_check_interval={interval} must be above 0; to leave validation out, give "
            "--trainer.limit_val_batches 0"
        )
    if options.get("overfit_batches"):
        raise InputError(
            f"trainer.overfit_batches={options['overfit_batches']}: Lightning would learn from "
            "single images in their order; give trainer.limit_train_batches and max_epochs"
        )
    for what in ("epochs", "steps"):
        fewest, most = options.get(f"min_{what}"), options.get(f"max_{what}")
        if fewest is not None and most is not None and 0 <= most < fewest:
            raise InputError(f"trainer.min_{what}={fewest} is above trainer.max_{what}={most}")


def check_callbacks(trainer: Trainer, module: TaskModule, data: MergeDataModule) -> None:
    """Check the callbacks of fit before images are read.

    Raises:
        InputError: A callback monitors a metric that is never logged, is incompatible with the
            module, or would make the run resume from a checkpoint other than its own; or nothing
            ends the run.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        name = f"trainer.callbacks: {type(callback).__name__}"
        if isinstance(callback, OnExceptionCheckpoint):
            raise InputError(
                f"{name} keeps what a run was within a step; leave it out, the same command goes "
                "on from checkpoints/last.ckpt"
            )
        if isinstance(callback, ON_WEIGHTS) and module.zoo is not None:
            raise InputError(
                f"{name} works on the weights of the network, of which {type(module).__name__} "
                "learns the coefficients alone; leave it out"
            )
        if isinstance(callback, BackboneFinetuning):
            raise InputError(f"{name} does not go with {type(module).__name__}; leave it out")
    theirs = [part for part in [module, *callbacks] if not _is_known(part)]
    if not theirs:  # user code may log anything, or end the run
        _check_monitors(callbacks, module.logged(*_tasks(trainer, data)))
        _check_end(trainer, callbacks)


def _tasks(trainer: Trainer, data: MergeDataModule) -> tuple[Sequence[str], Sequence[str]]:
    """Return the tasks used for training, and those used for validation."""
    return data.seen, data.tasks if trainer.limit_val_batches else ()


def _check_monitors(callbacks: Sequence[Any], known: Sequence[str]) -> None:
    for callback in callbacks:
        if not isinstance(callback, EarlyStopping | ModelCheckpoint):
            continue
        if callback.monitor is not None and callback.monitor not in known:
            raise InputError(
                f"trainer.callbacks: {type(callback).__name__} monitors {callback.monitor!r}, "
                f"which this run does not log; it logs {', '.join(known)}"
            )


def _check_end(trainer: Trainer, callbacks: Sequence[Any]) -> None:
    ends = any(isinstance(callback, EarlyStopping | Timer) for callback in callbacks)
    if trainer.max_epochs == -1 and trainer.max_steps == -1 and not ends:
        raise InputError(
            "trainer.max_epochs=-1: nothing ends this run; give trainer.max_epochs or max_steps"
        )


def _is_known(part: Any) -> bool:
    """Whether the class belongs to this package or Lightning, so that its metrics are known."""
    return type(part).__module__.partition(".")[0] in ("lightning", "lightning_merge")


def check_limits(trainer: Trainer, module: TaskModule, data: MergeDataModule, command: str) -> None:
    """Check that the trainer's limits leave batches in every split that a command uses.

    Args:
        trainer: Trainer of the run.
        module: Module that it runs.
        data: Loaded data module.
        command: "fit", "validate", "test" or "predict".

    Raises:
        InputError: A limit leaves no batches, or the validation interval exceeds the batches of an
            epoch.
    """
    data.transductive = getattr(module, "transductive", False)
    measures = module.zoo is not None
    wanted = {"validate": ["val"], "test": ["test"], "predict": ["predict"]}.get(command, ["train"])
    if command == "fit" and measures:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        chooses = any(isinstance(c, MergeCallback) and c.grid for c in callbacks)
        wanted += ["test", *(["val"] if chooses else [])]
    elif command == "fit" and trainer.limit_val_batches:
        wanted.append("val")
    for part in wanted:
        limit = getattr(trainer, f"limit_{part}_batches")
        batches = count_batches(data, part, trainer.world_size)
        if part != "train" and limit == 0:
            raise InputError(f"trainer.limit_{part}_batches=0 leaves no image")
        if isinstance(limit, float) and limit and int(limit * min(batches.values())) == 0:
            task = min(batches, key=batches.__getitem__)
            raise InputError(
                f"trainer.limit_{part}_batches={limit} is less than one batch of {task!r}, which "
                f"has {batches[task]}; give a larger share, or a whole number of batches"
            )
    if command == "fit":
        _check_interval(trainer, max(count_batches(data, "train", trainer.world_size).values()))


def _check_interval(trainer: Trainer, batches: int) -> None:
    interval = getattr(trainer, "val_check_interval", None)  # None if it is a duration
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    within_epoch = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches
    if isinstance(interval, int) and within_epoch and interval > batches:
        raise InputError(
            f"trainer.val_check_interval={interval}: an epoch has {batches} "
            f"batch{'es' * (batches != 1)}; give as many or fewer, or "
            "--trainer.check_val_every_n_epoch null to count across epochs"
        )
