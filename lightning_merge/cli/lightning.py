"""LightningCLI with a run folder: where things go, and how a stopped run goes on."""

import csv
import shlex
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info

from lightning_merge.callbacks import MergeCallback, WritePredictions
from lightning_merge.callbacks.checked import CheckedCallback
from lightning_merge.callbacks.task_vectors import TransformTaskVectors
from lightning_merge.cli.parser import Parser, plain
from lightning_merge.cli.processes import AtStart, Result, leave_together, start
from lightning_merge.cli.resume import (
    LastCheckpoint,
    WholeFiles,
    check_given,
    forget_requeued,
    obstacle,
)
from lightning_merge.cli.show import show
from lightning_merge.cli.trainer import (
    bars,
    check_callbacks,
    check_limits,
    check_options,
)
from lightning_merge.cli.usage import program
from lightning_merge.core.checkpoints.files import read_text, write_text
from lightning_merge.core.checkpoints.hub import exists
from lightning_merge.core.errors import InputError
from lightning_merge.core.ranks import AgreedError
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.evaluation.results import Results
from lightning_merge.evaluation.tables import own_split_note
from lightning_merge.modules.base import TaskModule
from lightning_merge.modules.coefficients import CoefficientModule
from lightning_merge.modules.compare import compare
from lightning_merge.modules.evaluate import Evaluate
from lightning_merge.runs import record, stages
from lightning_merge.runs.folder import RunFolder, remove
from lightning_merge.runs.refusals import check_seed, refusals

WEIGHTS = ("source", "projection", "weights")
"""Options of encoders that name files or folders, or repositories of the Hub."""


class _Parser(Parser, LightningArgumentParser):
    """Lightning's parser, whose errors are one message."""


class MergeCLI(LightningCLI):
    """Run a TaskModule on a MergeDataModule inside a run folder.

    The run folder is `trainer.default_root_dir`. It receives config.yaml, splits.json, run.json
    (what the run depends on), metrics.csv and checkpoints/last.ckpt; `fit` with the same
    configuration and inputs goes on from the latter, or shows the results if they are there.
    Before `fit`, when all options have proved right, what the module's zoo lacks is made; after
    it, every candidate is measured. Of several processes the first one makes, decides and
    writes.

    Args:
        args: The words after the program's name.
        alone: This process runs by itself, whatever others the program has.
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
                save_config_callback=None,  # see `_take_folder`
                parser_class=_Parser,
                parser_kwargs={"prog": program()},
                auto_configure_optimizers=False,
            )
        except AgreedError as error:
            leave_together(error)

    @cached_property
    def run_folder(self) -> RunFolder:
        """The run folder."""
        path = Path(self._get(self.config, "trainer").default_root_dir or "runs/unnamed")
        replace = self.subcommand == "fit" and self.config.fit.overwrite
        option = "trainer.default_root_dir"
        return RunFolder(
            path / "trial" if self.trial else path, option, not (self.trial or replace)
        )

    @property
    def folder(self) -> Path:
        """Where the run folder is."""
        return self.run_folder.path

    @property
    def trial(self) -> bool:
        """Whether this is `fit` with `trainer.fast_dev_run`, which has a folder of its own."""
        return self.subcommand == "fit" and bool(self._get(self.config, "trainer").fast_dev_run)

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self._get(self.config, "seed_everything") or 0)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        """Give fit an option of its own."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            what = "replace results of another configuration in the run folder"
            parser.add_argument("--overwrite", type=bool, default=False, help=what)
        return parser

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run folder's logger and its resumable checkpoint."""
        config = self._get(self.config_init, "trainer")
        check_options(config)
        kwargs["default_root_dir"] = str(self.folder)
        if config.get("logger") is None:
            kwargs["logger"] = CSVLogger(self.folder, name="", version="")
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        kwargs["callbacks"] = [*given, *bars(config, given), LastCheckpoint(self.folder)]
        if self.subcommand == "predict":
            kwargs["callbacks"].append(WritePredictions())
        elif self.subcommand == "fit":
            kwargs["callbacks"].append(AtStart(self._take_folder))
        with refusals():
            trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # and not a user's own
            trainer.strategy.checkpoint_io = WholeFiles()
        return trainer

    def _set_seed(self) -> None:
        check_seed(self._get(self.config, "seed_everything"))
        super()._set_seed()

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse, and look at the checkpoint before Lightning does."""
        super().parse_arguments(parser, args)
        given = self.config[self.config.subcommand].get("ckpt_path")
        if given not in (None, "last"):
            check_given(given)

    def before_validate(self) -> None:
        """Measure the coefficients that `fit` learned in this run folder."""
        self._go_on_from(self._begin(self._find_learned))

    before_test = before_validate
    before_predict = before_validate

    def before_fit(self) -> None:
        """Make what the zoo lacks; find out whether and where there is something to go on from."""
        self.finished, checkpoint = self._begin(self._prepare)
        self._go_on_from(checkpoint)
        if isinstance(self.model, CoefficientModule):
            self._set_seed()

    def fit(self, **options: Any) -> None:
        """Train, unless the results are there; LightningCLI runs this for the trainer's own."""
        if not self.finished:
            with refusals():
                self.trainer.fit(**options)

    def validate(self, **options: Any) -> None:
        """Measure on held-out images; see `_show`."""
        self._show("val", self.trainer.validate, options)

    def test(self, **options: Any) -> None:
        """Measure on test images; see `_show`."""
        self._show("test", self.trainer.test, options)

    def predict(self, **options: Any) -> None:
        """Write the predicted classes, and say where."""
        with refusals():
            self.trainer.predict(**options)
        rank_zero_info(f"predictions: {self.folder / 'predictions.csv'}")

    def _show(self, part: str, measure: Callable[..., Any], options: dict[str, Any]) -> None:
        """Measure, and print one line per task where Lightning has a column per loader."""
        with refusals():
            measure(**{**options, "verbose": False})
        if options["verbose"] and self.trainer.is_global_zero:
            found, data = self.model.measured[part], self.datamodule
            for task, value in found.accuracy.items():
                share = f" of {found.share(task)}" * bool(found.share(task))
                print(f"{part}/{task}: {100 * value:.1f} %{share}")
            average = found.mean(data.seen if part == "val" else data.tasks)
            print(f"{part}/average: {100 * average:.1f} %")
            if part == "test" and data.own_split:
                print(own_split_note(data.own_split))

    def _begin(self, work: Callable[[], Result]) -> Result:
        """Start the processes of the run; return what the first one's work gives."""
        return work() if self.alone else start(self.trainer, work)

    def _go_on_from(self, checkpoint: str | None) -> None:
        if self._given == "last":
            checkpoint = str(self.run_folder.last)
        if checkpoint is not None:
            self.config_init[self.subcommand].ckpt_path = checkpoint

    @property
    def _given(self) -> str | None:
        """The checkpoint that the user names."""
        return self.config[self.subcommand].get("ckpt_path")  # type: ignore[no-any-return]

    def _check(self) -> None:
        """Check what can be told before images are read, and then what their numbers tell."""
        if self._given == "last" and not self.run_folder.last.exists():
            raise InputError(
                f"ckpt_path='last': {self.run_folder.last} does not exist; run fit first"
            )
        self.model.check(self.trainer, self.datamodule.seen, self.subcommand)
        if self.subcommand == "fit":
            check_callbacks(self.trainer, self.model, self.datamodule)
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, CheckedCallback):
                    callback.check(self.trainer, self.model)
            if isinstance(self.model, CoefficientModule):
                stages.check(self.model.zoo, self.model.encoder, self.datamodule.tasks)
        command = str(self.subcommand)
        self.datamodule.load(test=command in ("test", "predict") or None)
        check_limits(self.trainer, self.model, self.datamodule, command)

    def _find_learned(self) -> str | None:
        """Return the checkpoint of the learned coefficients, unless the user names one."""
        self._check()
        self._keep_metrics()
        if not isinstance(self.model, CoefficientModule) or self._given is not None:
            return None
        if not self.run_folder.last.exists():
            raise InputError(
                f"nothing was fitted here: {self.run_folder.last} does not exist; run fit with the "
                "same config first or give --ckpt_path"
            )
        now = record.stored({**self._describe(), **record.describe_files(self._files())})
        before = record.network(self.run_folder.recorded)
        if changed := record.differences(before, record.network(now)):
            raise InputError(
                f"{self.run_folder.last} was fitted with another configuration or other inputs: "
                f"{changed}. Take --config {self.folder / 'config.yaml'}, or give --ckpt_path"
            )
        return str(self.run_folder.last)

    def _prepare(self) -> tuple[bool, str | None]:
        """Make what fit needs; what earlier runs left in the run folder is not touched.

        Returns:
            Whether this very run is finished, and its checkpoint if there is one to go on from.
        """
        self._check()
        self.run_folder.resolve(self._describe(), self._fill_zoo, self._files)
        complete = not self.trial and self.run_folder.is_complete(self.run_folder.coefficients)
        if complete and self.run_folder.is_unchanged:
            return True, None
        found = None
        if self._given is None and self.run_folder.last.exists():
            ends = self.model.end_counts
            why_not = obstacle(self.run_folder, self.trainer, ends)
            if why_not is None:
                rank_zero_info(f"going on from {self.run_folder.last}")
                found = str(self.run_folder.last)
            else:
                rank_zero_info(f"{self.run_folder.last} {why_not}: starting anew")
        forget_requeued(self.folder)
        self._keep_metrics()
        self._anew = found is None
        return False, found

    def _describe(self) -> dict[str, Any]:
        """Return what the run depends on, files apart; see `record`."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        before = [c.described() for c in callbacks if isinstance(c, TransformTaskVectors)]
        after = [c.method.described() for c in callbacks if isinstance(c, MergeCallback)]
        options = record.describe_options(plain(self.config[self.subcommand]))
        return {
            **options,
            **({record.TASK_VECTORS: before} if before else {}),
            record.CALLBACKS: [options[record.CALLBACKS], after],
            record.TRANSDUCTIVE: getattr(self.model, "transductive", False),
            **record.describe_images(self.datamodule),
            "processes": self.trainer.world_size,  # others see the images in another order
        }

    def _files(self) -> list[str]:
        """Return the files that the run depends on."""
        encoder = plain(self.config[self.subcommand].model).get("init_args", {})
        options = (encoder.get("encoder") or {}).get("init_args") or {}
        own = [v for n, v in options.items() if n in WEIGHTS and isinstance(v, str) and exists(v)]
        return [*self.model.input_files(self.datamodule.tasks), *own]

    def _take_folder(self) -> None:
        """Let what earlier runs left give way, now that nothing can be refused any more."""
        forget = ["checkpoints/last.ckpt"] if self._anew and self._given is None else []
        if self._anew:
            self._forget_metrics()
        self.run_folder.take(self.datamodule, self._save, forget)

    def _save(self, file: Path) -> None:
        config = self.config.fit.clone()
        del config["overwrite"]  # the other commands have no such option
        write_text(file, self._parser("fit").dump(config, skip_none=False))

    def _fill_zoo(self) -> None:
        if not isinstance(model := self.model, CoefficientModule):
            return
        config = plain(self._get(self.config, "model").init_args)
        config["data"] = plain(self._get(self.config, "data"))
        stages.fill(model.zoo, model.encoder, config, self.datamodule, fit)

    def _keep_metrics(self) -> None:
        """Let the run add to its metrics.csv, which Lightning's logger would delete."""
        path = self.folder / "metrics.csv"
        if isinstance(self.trainer.logger, CSVLogger) and path.exists():
            rows = read_text(path)
            self.trainer.logger.experiment.metrics_keys = next(csv.reader([rows.split("\n")[0]]))
            write_text(path, rows)

    def _forget_metrics(self) -> None:
        if isinstance(self.trainer.logger, CSVLogger):
            self.trainer.logger.experiment.metrics_keys = []
            remove(self.folder / "metrics.csv")

    def after_fit(self) -> None:
        """Measure every candidate and show the table."""
        if not isinstance(self.model, CoefficientModule):
            return
        results = Results.from_json(self.run_folder.results) if self.finished else self._measure()
        if self.trainer.is_global_zero:
            show(results, self.folder, self.run_folder.merged(self.model.name), results.notes)
            if self.finished:
                print("nothing has changed since; to measure again, remove its results.json")

    def _measure(self) -> Results:
        with refusals():
            return compare(
                self.trainer,
                Evaluate(self.model.encoder, self.model.zoo.heads, self.model.zoo.base),
                self.datamodule,
                self.model.candidates,
                self.folder,
                seed=self.seed,
                command=self.command,
                notes=self.model.notes(),
            )


def fit(words: list[str]) -> None:
    """Run `fit` with some options, in this process alone."""
    MergeCLI(["fit", *words], alone=True)
