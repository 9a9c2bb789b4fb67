"""LightningCLI with a run folder: where things go, and how a stopped run goes on."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from lightning_merge.callbacks import WritePredictions
from lightning_merge.cli.processes import Result, leave_together, start
from lightning_merge.cli.stages import fingerprint, plain, prepare
from lightning_merge.core.checkpoint import file_hash
from lightning_merge.core.errors import InputError
from lightning_merge.core.files import atomic_write
from lightning_merge.core.ranks import AgreedError
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.evaluation.tables import rich_table
from lightning_merge.modules.base import TaskModule
from lightning_merge.modules.coefficients import CoefficientModule
from lightning_merge.modules.compare import compare
from lightning_merge.modules.evaluate import Evaluate

DATA_OF_A_TASK = (
    "root", "source", "validation_fraction", "duplicates", "split_seed", "num_workers", "cache_gib"
)  # fmt: skip


class MergeCLI(LightningCLI):
    """Run a TaskModule on a MergeDataModule inside a run folder.

    The run folder is `trainer.default_root_dir`. It receives config.yaml, splits.json,
    metrics.csv and checkpoints/last.ckpt; `fit` with the same configuration and inputs goes on
    from the latter. Before `fit`, when all options have proved right, what the module's zoo
    lacks is made; after it, every candidate is measured. Of several processes the first one
    makes, decides and writes.

    Args:
        args: the words after the program's name.
        alone: this process runs by itself, whatever others the program has.
    """

    def __init__(self, args: list[str], alone: bool = False) -> None:
        self.command = shlex.join(["python", "-m", "lightning_merge", *args])
        self.alone = alone
        try:
            super().__init__(
                TaskModule,
                MergeDataModule,
                args=args,
                subclass_mode_model=True,
                seed_everything_default=0,
                save_config_kwargs={"overwrite": True},
                auto_configure_optimizers=False,
            )
        except AgreedError as error:
            leave_together(error)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self._get(self.config, "trainer").default_root_dir or "runs/unnamed")

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self._get(self.config, "seed_everything") or 0)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run folder's logger and its resumable checkpoint."""
        config = self._get(self.config_init, "trainer")
        kwargs.setdefault("default_root_dir", str(self.folder))
        if config.get("logger") is None:
            kwargs["logger"] = CSVLogger(self.folder, name="", version="")
        given = config.get("callbacks") or []
        kwargs["callbacks"] = [
            *(given if isinstance(given, list) else [given]),
            ModelCheckpoint(  # `save_last` with no other checkpoint would save at the end alone
                self.folder / "checkpoints",
                filename="last",
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
        ]
        if self.subcommand == "predict":
            kwargs["callbacks"].append(WritePredictions())
        try:
            return super().instantiate_trainer(**kwargs)
        except InputError:
            raise
        except (MisconfigurationException, ValueError) as fault:
            raise InputError(f"trainer: {fault}") from fault

    def before_validate(self) -> None:
        """Measure the coefficients that `fit` learned in this run folder."""
        self._go_on_from(self._begin(self._find_learned))

    before_test = before_validate
    before_predict = before_validate

    def before_fit(self) -> None:
        """Make what the zoo lacks; record the splits; go on from the same run's checkpoint."""
        self._go_on_from(self._begin(self._prepare))
        if isinstance(self.model, CoefficientModule):
            self._set_seed()

    def _begin(self, work: Callable[[], Result]) -> Result:
        """Start the processes of the run; return what the first one's work gives."""
        return work() if self.alone else start(self.trainer, work)

    def _go_on_from(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.config_init[self.subcommand].ckpt_path = checkpoint

    @property
    def _last(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    def _find_learned(self) -> str | None:
        """Return the checkpoint of the learned coefficients, unless the user names one."""
        self.model.check(self.trainer, self.datamodule.tasks)
        self._keep_metrics()
        given = self.config_init[self.subcommand].get("ckpt_path")
        if not isinstance(self.model, CoefficientModule) or given is not None:
            return None
        if not self._last.exists():
            raise InputError(
                f"nothing was fitted here: {self._last} is no file; run fit with the same config "
                "first or give --ckpt_path"
            )
        return str(self._last)

    def _prepare(self) -> str | None:
        """Make and record what fit needs; return this very run's checkpoint, if there is one."""
        self.model.check(self.trainer, self.datamodule.tasks)
        if isinstance(self.model, CoefficientModule):
            self._fill_zoo(self.model)
        self.datamodule.load(test=None)
        self.datamodule.write_splits(self.folder / "splits.json")
        mark, record = self._mark(), self.folder / "run.fingerprint"
        found = None
        if self.config_init[self.subcommand].get("ckpt_path") is None and self._last.exists():
            if record.exists() and record.read_text() == mark:
                rank_zero_info(f"going on from {self._last}")
                found = str(self._last)
                self._keep_metrics()
            else:
                rank_zero_info(
                    f"{self._last} is of another configuration or other inputs: starting anew"
                )
                for name in ("checkpoints/last.ckpt", "results.json", "results.md"):
                    _remove(self.folder / name)
        with atomic_write(record) as temporary:
            temporary.write_text(mark)
        return found

    def _fill_zoo(self, model: CoefficientModule) -> None:
        options = plain(self._get(self.config, "data"))
        prepare(
            model.zoo,
            model.encoder,
            plain(self._get(self.config, "model").init_args.encoder),
            self.datamodule,
            {key: options[key] for key in DATA_OF_A_TASK},
            fit=lambda arguments: MergeCLI(["fit", *arguments], alone=True),
        )
        self.datamodule.preprocess = None  # forget the decoded train images

    def _keep_metrics(self) -> None:
        """Let the run add to its metrics.csv, which Lightning's logger would delete."""
        path = self.folder / "metrics.csv"
        if isinstance(self.trainer.logger, CSVLogger) and path.exists():
            rows = path.read_text()
            self.trainer.logger.experiment.metrics_keys = rows.partition("\n")[0].split(",")
            path.write_text(rows)

    def _mark(self) -> str:
        """Return a digest of all that the checkpoint of this run depends on."""
        config = plain(self.config[self.subcommand])
        config["trainer"] = {
            key: value
            for key, value in config["trainer"].items()
            if key not in ("default_root_dir", "logger", "callbacks", "enable_progress_bar")
        }
        inputs = [self.datamodule.digest(task) for task in self.datamodule.tasks]
        if isinstance(self.model, CoefficientModule):
            zoo = self.model.zoo
            files = [zoo.base, zoo.heads, *map(zoo.expert, self.datamodule.tasks)]
            inputs += [file_hash(file) for file in files]
        if self.trainer.world_size > 1:  # another number sees the images in another order
            inputs.append(f"{self.trainer.world_size} processes")
        return fingerprint([config, inputs])

    def after_fit(self) -> None:
        """Measure every candidate and show the table."""
        if not isinstance(self.model, CoefficientModule):
            return
        results = compare(
            self.trainer,
            Evaluate(self.model.encoder, self.model.zoo.heads, self.model.zoo.base),
            self.datamodule,
            self.model.candidates,
            self.folder,
            seed=self.seed,
            command=self.command,
        )
        if self.trainer.is_global_zero:
            console = Console()
            console.print(rich_table(results, width=console.width))
            console.print(f"run folder: {self.folder}")


def _remove(path: Path) -> None:
    """Remove a file, or the folder of a sharded checkpoint, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
