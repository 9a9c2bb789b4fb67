"""Start and end the processes of one command together."""

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, NoReturn, TypeVar

from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import distributed

from lightning_merge.core.errors import InputError
from lightning_merge.core.progress import display
from lightning_merge.core.ranks import AgreedError, Ranks

LEARNING = "learning"
"""The stage of training, or of learning coefficients."""
Result = TypeVar("Result")


class AtStart(Callback):
    """Runs some work once at the start of fit, after setup and all checks."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Run the work."""
        Ranks.of(trainer).once(self.work)
        display().keep_log()  # of every process


class Learning(Callback):
    """Ends the stage of learning before callbacks merge.

    Args:
        shown: Holds the stage.
    """

    def __init__(self, shown: ExitStack) -> None:
        self._shown = shown

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """End the stage."""
        self._shown.close()

    on_fit_end = on_train_end  # without a step, training does not end


def start(trainer: Trainer, work: Callable[[], Result]) -> Result:
    """Run the work in process zero, and return its result in all processes of the run.

    If Lightning starts the other processes, it does so after the work, so that bad input ends the
    run first. Processes of torchrun or srun already exist, and wait.

    Raises:
        InputError: The work found bad input, or the trainer does not fit the processes.
    """
    _check(trainer)
    if trainer.world_size == 1:
        return work()
    strategy = trainer.strategy
    assert isinstance(strategy, ParallelStrategy)
    environment, launcher = strategy.cluster_environment, strategy.launcher
    assert environment is not None
    if not environment.creates_processes_externally and trainer.num_nodes == 1:
        result = work()
        work = lambda: result  # noqa: E731
    # Lightning takes a stage that runs in one of several processes for a distributed one.
    warnings.filterwarnings("ignore", "It is recommended to use `self.log")
    if launcher is None:
        strategy.setup_environment()
    else:
        launcher.launch(strategy.setup_environment)
    return Ranks.of(trainer).once(work)


def _check(trainer: Trainer) -> None:
    started = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if TorchElasticEnvironment.detect():
        started = int(os.environ["WORLD_SIZE"])
    if started > 1 and started != trainer.world_size:
        nodes = trainer.num_nodes
        raise InputError(
            f"{started} processes were started, but trainer.devices={trainer.num_devices} and "
            f"trainer.num_nodes={nodes} are {trainer.world_size}; give --trainer.strategy ddp "
            f"--trainer.devices {started // nodes}, or start one process"
        )
    if trainer.num_nodes > 1 and started == 1 and "MASTER_ADDR" not in os.environ:
        raise InputError(
            f"trainer.num_nodes={trainer.num_nodes}, but this is one process; start one per "
            "device by torchrun or srun, as configs/cluster shows"
        )
    launcher = trainer.strategy.launcher
    if launcher is not None and not isinstance(launcher, _SubprocessScriptLauncher):
        raise InputError(
            f"trainer.strategy={type(trainer.strategy).__name__} of this start method keeps what "
            "it learns in processes of its own; use ddp"
        )


def leave_together(error: AgreedError) -> NoReturn:
    """Print the error in process zero, and end every process with exit code 2."""
    ranks = Ranks(distributed.get_rank(), distributed.get_world_size())
    if ranks.rank == 0:
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        # Launchers kill all processes when one fails. Waiting here lets process zero print the
        # error and exit first, which breaks off this wait.
        with suppress(RuntimeError):
            ranks.gather(None)
    sys.exit(2)
