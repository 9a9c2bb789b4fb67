"""LightningCLI with a run folder, from which a stopped run resumes."""

import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_merge.callbacks import MergeCallback, WritePredictions
from lightning_merge.callbacks.checked import CheckedCallback
from lightning_merge.callbacks.task_vectors import TransformTaskVectors
from lightning_merge.cli.parser import Parser, plain
from lightning_merge.cli.processes import LEARNING, AtStart, Learning, Result, leave_together, start
from lightning_merge.cli.resume import (
    LastCheckpoint,
    WholeFiles,
    check_given,
    forget_requeued,
    obstacle,
)
from lightning_merge.cli.show import show
from lightning_merge.cli.trainer import (
    check_callbacks,
    check_limits,
    check_options,
    shown_by,
)
from lightning_merge.cli.usage import program
from lightning_merge.core.checkpoints.files import write_text
from lightning_merge.core.errors import InputError
from lightning_merge.core.progress import display, note, stage
from lightning_merge.core.ranks import AgreedError
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.evaluation.legend import own_split_note
from lightning_merge.evaluation.page import write_page
from lightning_merge.evaluation.results import Results
from lightning_merge.modules.base import TaskModule
from lightning_merge.modules.compare import CHOOSING, MEASURING, compare
from lightning_merge.modules.evaluate import Evaluate
from lightning_merge.modules.references import References
from lightning_merge.runs import record
from lightning_merge.runs.folder import RunFolder
from lightning_merge.runs.heads import describe_inputs
from lightning_merge.runs.making import ZooMaker
from lightning_merge.runs.metrics import MetricsFile
from lightning_merge.runs.recipe import Config
from lightning_merge.runs.refusals import check_seed, refusals


class _Parser(Parser, LightningArgumentParser):
    """Lightning's parser, with errors of one message."""


class Start(NamedTuple):
    """How a run of `fit` begins.

    Attributes:
        finished: Whether its results already exist.
        checkpoint: Checkpoint to resume from, if any.
    """

    finished: bool
    checkpoint: str | None


class MergeCLI(LightningCLI):
    """Run a TaskModule on a MergeDataModule inside a run folder.

    The run folder is `trainer.default_root_dir`. It receives config.yaml, splits.json, run.json
    (what the run depends on), metrics.csv and checkpoints/last.ckpt. `fit` with the same
    configuration and inputs resumes from that checkpoint, or shows the results if the run has
    finished. Missing files of the module's zoo are made before `fit`, once all options have been
    checked; every candidate is measured after it. With several processes, the first one makes
    files, decides and writes.

    Args:
        args: The words after the program's name; or, for a run within a run, the options of `fit`,
            which then runs in this process only, even if the program has several.
    """

    def __init__(self, args: list[str] | Config) -> None:
        self.alone = isinstance(args, Mapping)
        self._shown = ExitStack()
        if isinstance(args, Mapping):
            args = {"subcommand": "fit", "fit": dict(args)}
        self._asked = "fit" if isinstance(args, dict) else args[0]
        self.command = shlex.join(["python", "-m", "lightning_merge", *args])
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
        """The path of the run folder."""
        return self.run_folder.path

    @property
    def trial(self) -> bool:
        """Whether this is `fit` with `trainer.fast_dev_run`, which uses a separate folder."""
        return self.subcommand == "fit" and bool(self._get(self.config, "trainer").fast_dev_run)

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self._get(self.config, "seed_everything") or 0)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # it was static
        """Return the subcommand that was asked for: a parser of each would take its time."""
        return {self._asked: super().subcommands()[self._asked]}

    def _dump_config(self) -> None:
        """Set what Lightning offers a module as hyperparameters; dumping it as YAML is slow."""
        self.config_dump = plain(self.config[self.subcommand])

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        """Add what only fit has: --overwrite and --report."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            what = "replace results of another configuration in the run folder"
            parser.add_argument("--overwrite", type=bool, default=False, help=what)
            what = "write report.html, the page that `report` writes, at the end"
            parser.add_argument("--report", type=bool, default=True, help=what)
        return parser

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run folder's logger and its resumable checkpoint."""
        config = self._get(self.config_init, "trainer")
        check_options(config)
        kwargs["default_root_dir"] = str(self.folder)
        self.datamodule.kept.keep_beside(self.folder.parent if self.trial else self.folder)
        if config.get("logger") is None:
            kwargs["logger"] = MetricsFile(self.folder)
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        own = [*shown_by(config, given), LastCheckpoint(self.folder)]
        kwargs["callbacks"] = [Learning(self._shown), *given, *own]
        if self.subcommand == "predict":
            kwargs["callbacks"].append(WritePredictions())
        elif self.subcommand == "fit":
            kwargs["callbacks"].append(AtStart(self._take_folder))
        with refusals():
            trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # keep a user's own
            trainer.strategy.checkpoint_io = WholeFiles()
        return trainer

    def _set_seed(self) -> None:
        check_seed(self._get(self.config, "seed_everything"))
        super()._set_seed()

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse, and check the given checkpoint before Lightning loads it."""
        super().parse_arguments(parser, args)
        given = self.config[self.config.subcommand].get("ckpt_path")
        if given not in (None, "last"):
            check_given(given)

    def fit(self, **options: Any) -> None:
        """Make missing files, train, and measure; LightningCLI calls this for `Trainer.fit`."""
        display().log_into(self.folder)
        begun = self._begin(self._prepare)
        if self.model.zoo is not None:
            self._set_seed()  # so that random numbers do not depend on which files were made
        if not begun.finished:
            with refusals(), self._shown:
                self._shown.enter_context(stage(LEARNING))
                self.trainer.fit(**self._going_on(options, begun.checkpoint))
        if self.model.zoo is not None:
            self._report(begun.finished)

    def _stages(self) -> list[str]:
        """Return the names of the stages of `fit`, in order."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        merges = [c for c in callbacks if isinstance(c, MergeCallback)]
        made = self._maker.planned() if self._maker is not None else []
        measured = [CHOOSING] * any(c.grid for c in merges) + [MEASURING]
        return [*made, LEARNING, *(c.stage for c in merges), *(measured if self.model.zoo else ())]

    def validate(self, **options: Any) -> None:
        """Measure on held-out images; see `_show`."""
        self._show("val", self.trainer.validate, options)

    def test(self, **options: Any) -> None:
        """Measure on test images; see `_show`."""
        self._show("test", self.trainer.test, options)

    def predict(self, **options: Any) -> None:
        """Write the predicted classes, and print the path of the file."""
        display().log_into(self.folder)
        learned = self._begin(self._find_learned)
        with refusals(), stage("predicting"):
            self.trainer.predict(**self._going_on(options, learned))
        display().keep_log()
        if self.trainer.is_global_zero:
            print(f"predictions: {self.folder / 'predictions.csv'}")

    def _show(self, part: str, measure: Callable[..., Any], options: dict[str, Any]) -> None:
        """Measure the result of `fit` in this run folder, and print one line per task."""
        display().log_into(self.folder)
        learned = self._begin(self._find_learned)
        with refusals(), stage(MEASURING):
            measure(**{**self._going_on(options, learned), "verbose": False})
        display().keep_log()
        if options["verbose"] and self.trainer.is_global_zero:
            found, data = self.model.measured[part], self.datamodule
            for task, value in found.accuracy.items():
                share = f" of {found.share(task)}" * bool(found.share(task))
                print(f"{part}/{task}: {100 * value:.1f} %{share}")
            tasks = data.seen if part == "val" else data.tasks
            for name, average in found.averages(tasks, data.out_of_domain).items():
                print(f"{part}/{name}: {100 * average:.1f} %")
            for note in data.kept.notes if part == "test" else ():
                print(note)
            if part == "test" and data.own_split:
                print(own_split_note(data.own_split))

    def _begin(self, work: Callable[[], Result]) -> Result:
        """Start the processes of the run; return the result of the first one's work."""
        return work() if self.alone else start(self.trainer, work)

    def _going_on(self, options: dict[str, Any], checkpoint: str | None) -> dict[str, Any]:
        """Return a trainer's options with the checkpoint to resume from, if there is one."""
        if self._given == "last":
            checkpoint = str(self.run_folder.last)
        return options if checkpoint is None else {**options, "ckpt_path": checkpoint}

    @property
    def _given(self) -> str | None:
        """The checkpoint given by the user."""
        return self.config[self.subcommand].get("ckpt_path")  # type: ignore[no-any-return]

    def _check(self) -> None:
        """Check what does not need images, then load them and check what depends on counts."""
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
            if self._maker is not None:
                self._maker.check()
        command = str(self.subcommand)
        self.datamodule.load(test=command in ("test", "predict") or None)
        check_limits(self.trainer, self.model, self.datamodule, command)

    def _find_learned(self) -> str | None:
        """Return the checkpoint of the learned coefficients; None if the user gives one."""
        self._check()
        if self.model.zoo is None or self._given is not None:
            return None
        if not self.run_folder.last.exists():
            raise InputError(
                f"nothing was fitted here: {self.run_folder.last} does not exist; run fit with the "
                "same config first or give --ckpt_path"
            )
        now = record.stored({**self._describe(), **self._inputs()})
        before = record.network(self.run_folder.recorded)
        if changed := record.differences(before, record.network(now)):
            raise InputError(
                f"{self.run_folder.last} was fitted with another configuration or other inputs: "
                f"{changed}. Take --config {self.folder / 'config.yaml'}, or give --ckpt_path"
            )
        return str(self.run_folder.last)

    def _prepare(self) -> Start:
        """Make what fit needs, without touching what earlier runs left in the run folder."""
        self._check()
        display().plan(self._stages())
        self.run_folder.resolve(self._describe(), self._fill_zoo, self._inputs)
        complete = not self.trial and self.run_folder.is_complete(self.run_folder.coefficients)
        if complete and self.run_folder.is_unchanged:
            return Start(True, None)
        checkpoint = None
        if self._given is None and self.run_folder.last.exists():
            ends = self.model.end_counts
            why_not = obstacle(self.run_folder, self.trainer, ends)
            if why_not is None:
                note(f"going on from {self.run_folder.last}")
                checkpoint = str(self.run_folder.last)
            else:
                note(f"{self.run_folder.last} {why_not}: starting anew")
        forget_requeued(self.folder)
        return Start(False, checkpoint)

    def _describe(self) -> dict[str, Any]:
        """Return what the run depends on except files; see `record`."""
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
            "processes": self.trainer.world_size,  # their number changes the order of images
        }

    def _inputs(self) -> dict[str, str]:
        """Return the files and heads that the run depends on, with their digests."""
        encoder, data = self._model_options.get("encoder") or {}, self.datamodule
        own = self.model.encoder.files(encoder.get("init_args") or {})
        files = [*self.model.input_files(data.tasks), *own]
        return describe_inputs(files, self.model.heads_files, data)

    @property
    def _model_options(self) -> dict[str, Any]:
        """The options of the module; empty for a class that takes none."""
        return plain(self._get(self.config, "model")).get("init_args") or {}

    def _take_folder(self) -> None:
        """Remove what earlier runs left and record this one, once every check has passed."""
        forget = [] if self.trainer.ckpt_path == str(self.run_folder.last) else ["metrics.csv"]
        forget += [] if self.trainer.ckpt_path else ["checkpoints/last.ckpt"]
        self.run_folder.take(self.datamodule, self._save, forget)

    def _save(self, file: Path) -> None:
        config = self.config.fit.clone()
        del config["overwrite"], config["report"]  # only fit has these options
        write_text(file, self._parser("fit").dump(config, skip_none=False))

    @cached_property
    def _maker(self) -> ZooMaker | None:
        """Makes missing files of the module's zoo; None without a zoo."""
        if self.model.zoo is None:
            return None
        zoo, encoder, data = self.model.zoo, self.model.encoder, self.datamodule
        return ZooMaker(zoo, encoder, self._model_options, data.tasks, data.out_of_domain)

    def _fill_zoo(self) -> None:
        if self._maker is not None:
            self._maker.fill(self.datamodule, plain(self._get(self.config, "data")), MergeCLI)

    def _report(self, finished: bool) -> None:
        """Measure every candidate unless the run had finished; show the table, write the page."""
        results = Results.from_json(self.run_folder.results) if finished else self._measure()
        if self.trainer.is_global_zero:
            show(results, self.folder, self.run_folder.merged(self.model.name), results.notes)
            page = self.folder / "report.html"
            if self.config.fit.report and not (finished and page.exists()):
                print(f"report: {write_page(self.folder)}")
            if finished:
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
                recalibrated=self.model.recalibrated,
                references=References(
                    self.folder, {"encoder": self._model_options.get("encoder"), **self._inputs()}
                ),
            )
