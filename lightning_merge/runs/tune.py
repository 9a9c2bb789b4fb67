"""Tune hyperparameters on held-out examples, and test the best once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from lightning.pytorch import Trainer, seed_everything

from lightning_merge.core.checkpoints.files import write_text
from lightning_merge.core.checks import require_choice, require_in
from lightning_merge.core.cost import Cost
from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import shown_to
from lightning_merge.core.progress import detail, display, note, progress, stage
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.evaluation.candidates import BOUNDS, Candidate
from lightning_merge.evaluation.page import write_page
from lightning_merge.evaluation.results import Results
from lightning_merge.evaluation.tables import markdown_table
from lightning_merge.methods.base import Method, brief
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.bar import Bar
from lightning_merge.modules.compare import MEASURING, compare
from lightning_merge.modules.evaluate import Evaluate
from lightning_merge.modules.held_out import BatchNorm, check_count
from lightning_merge.modules.references import References
from lightning_merge.modules.space import Range, Space
from lightning_merge.modules.tuning import Sampler, Score, Search, Trial
from lightning_merge.modules.zoo import Zoo
from lightning_merge.runs import record
from lightning_merge.runs.folder import RunFolder
from lightning_merge.runs.heads import describe_inputs
from lightning_merge.runs.making import ZooMaker
from lightning_merge.runs.merging import Target, ZooMerger
from lightning_merge.runs.recipe import Config, Fit
from lightning_merge.runs.refusals import check_seed, check_unseen, refusals

WITHOUT_EFFECT = ("trials", "overwrite", "report", "folder", "config", "data")
"""Options that no trial depends on, and `data`, which is recorded separately."""

TRIALS = "trials"
"""The stage that searches."""
Write = Callable[[Method], Cost]
"""Merges by a method, and writes the merged network."""


class Tune:
    """Choose hyperparameters of a merge method on held-out examples; test the best once.

    The run folder receives config.yaml, splits.json and run.json, the table of trials (trials.json
    and trials.md, updated after every trial), and at the end merged/NAME.safetensors, results.json,
    results.md and report.html. The same command resumes a stopped run. Missing files of the zoo are
    made first.

    Args:
        encoder: Architecture of the base and the experts.
        zoo: Files of the base, experts and heads.
        data: The tasks; trials are scored on all held-out examples of the seen tasks.
        method: A merge method or a network method, with the hyperparameters that stay fixed.
        space: Hyperparameter -> its range: {low: 0.05, high: 1.0, log: true}, or a list of
            choices. Those of transforms are written as in LwPTV.prune_ratio.
        trials: How many points to try; the first is the method as given if it lies in the space.
        sampler: "tpe" or "random". A space with no more points than trials is searched in full.
        name: Name of the merged network in tables and files; by default the method's name.
        folder: The run folder.
        seed_everything: Seed of the sampler and of methods that use random numbers.
        batch_norm: Statistics of BatchNorm layers, see `CoefficientModule`.
        accelerator: Where the network runs, as in Lightning's Trainer.
        overwrite: Replace results of another configuration in the run folder.
        report: Also write report.html, the page that `report` writes.

    Raises:
        InputError: The space does not fit the method, a number is out of range, the name is that
            of a reference, or Lightning rejects the accelerator.

    Examples:
        >>> from lightning_merge.methods import TaskArithmetic
        >>> from lightning_merge.models import MiniViT
        >>> zoo = Zoo("base.safetensors", "{task}.safetensors", "heads.safetensors")
        >>> data = MergeDataModule(tasks=["mnist", "dtd"])
        >>> space = {"scale": {"low": 0.1, "high": 1.0}}
        >>> tune = Tune(MiniViT(), zoo, data, TaskArithmetic(), space, folder="run")
        >>> str(tune.file)
        'run/merged/taskarithmetic_tuned.safetensors'
    """

    def __init__(
        self,
        encoder: Encoder,
        zoo: Zoo,
        data: MergeDataModule,
        method: Method,
        space: dict[str, Any],
        trials: int = 30,
        sampler: Sampler = "tpe",
        name: str | None = None,
        folder: str = "runs/tune",
        seed_everything: int = 0,
        batch_norm: BatchNorm = "auto",
        accelerator: str = "auto",
        overwrite: bool = False,
        report: bool = True,
    ) -> None:
        self.encoder, self.zoo, self.data, self.method = encoder, zoo, data, method
        self.space = Space(method, {name: Range.of(name, given) for name, given in space.items()})
        self.trials, self.sampler, self.seed = trials, sampler, seed_everything
        self.report = report
        self.name = name or f"{type(method).__name__.lower()}_tuned"
        self.folder = Path(folder)
        data.kept.keep_beside(self.folder)
        self.run_folder = RunFolder(self.folder, "folder", keep=not overwrite)
        self.batch_norm = batch_norm
        self._check()
        with refusals(f"accelerator={accelerator!r}"):
            self.trainer = Trainer(
                accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False,
                callbacks=[Bar()], enable_model_summary=False, default_root_dir=folder,
            )  # fmt: skip

    def _check(self) -> None:
        """Check what can be checked before any file is opened."""
        check_seed(self.seed)
        require_choice(get_args(BatchNorm), batch_norm=self.batch_norm)
        require_in("[1, inf)", trials=self.trials)
        if self.name in BOUNDS:
            raise InputError(f"name={self.name!r} is that of a reference; give another")
        if len(self.data.seen) < 2:
            raise InputError(
                f"data.tasks={list(self.data.seen)}: merging takes two tasks or more that are not "
                "unseen"
            )
        check_unseen(self.name, self.method, self.data.unseen)

    def run(
        self,
        config: Config,
        save: Callable[[Path], None],
        command: str,
        fit: Fit,
    ) -> Results:
        """Make missing files of the zoo, search, and measure.

        Args:
            config: All options, as dicts, lists and scalars.
            save: Writes them into a file.
            command: Command that started the run, for the record.
            fit: Runs `fit` with a config, to make missing files of the zoo.

        Raises:
            InputError: Files are missing or do not fit, or the run folder holds the results of
                another configuration.
        """
        data = self.data
        maker = ZooMaker(self.zoo, self.encoder, config, data.tasks, data.out_of_domain)
        maker.check()
        display().log_into(self.folder)
        display().plan([*maker.planned(), TRIALS, MEASURING])
        self.data.load(test=None)
        self.run_folder.resolve(
            self._describe(config),
            lambda: maker.fill(self.data, config["data"], fit),
            lambda: self._inputs(config),
            growing=["trials"],
        )
        if self.run_folder.is_unchanged and self.run_folder.is_complete():
            return Results.from_json(self.run_folder.results)
        before, now = ({**r, "trials": 0} for r in (self.run_folder.before, self.run_folder.now))
        trials = [] if before == now else ["trials.json", "trials.md"]
        self.run_folder.take(self.data, save, trials)
        seed_everything(self.seed, verbose=False)
        inputs = {"encoder": config["encoder"], **self._inputs(config)}
        results = self._search(command, inputs)
        if self.report:
            write_page(self.folder)
        return results

    @property
    def file(self) -> Path:
        """The merged network: that of the current trial, and at the end the best one."""
        return self.run_folder.merged(self.name)

    def _describe(self, config: Config) -> dict[str, Any]:
        """Return what the numbers depend on except files; see `record`."""
        options = {name: value for name, value in config.items() if name not in WITHOUT_EFFECT}
        described = record.describe_options({"model": options, "data": config["data"]})
        return {**described, "trials": self.trials, **record.describe_images(self.data)}

    def _inputs(self, config: Config) -> dict[str, str]:
        own = self.encoder.files(config["encoder"].get("init_args") or {})
        files = [*self.zoo.inputs(self.data.tasks), *own]
        return describe_inputs(files, self.zoo.heads, self.data)

    # The search

    def _search(self, command: str, inputs: Config) -> Results:
        kept = self.folder / "trials.json"
        search = Search(self.space, kept, self.trials, self.sampler, self.seed)
        if search.trials:
            note(f"going on after trial {len(search.trials)} in {kept}")
        device = self.trainer.strategy.root_device
        merger = ZooMerger.open(self.zoo, self.encoder, self.data, device)
        recalibrate = merger.recalibrates(self.batch_norm)
        if recalibrate:
            check_count(self.data)
        evaluate = Evaluate(self.encoder, self.zoo.heads, self.zoo.base)
        target = Target(self.file, recalibrate)

        def write(method: Method) -> Cost:
            return merger.write(method, [target])[0]

        def keep() -> None:
            write_text(self.folder / "trials.md", table(search.trials, self.data.tasks))

        detail(f"tuning {brief(self.method)}")
        with stage(TRIALS) as say, progress(search.total, "trial", done=len(search.trials)) as step:

            def report(last: Trial) -> None:
                found = f"{100 * last.score.average:.2f} %" if last.score else last.refused
                detail(f"trial {len(search.trials)} of {search.total}: {last.text}: {found}")
                keep()
                step(1)

            search.run(lambda method: self._score(write, evaluate, method), report)
            keep()
            say(f"{search.total}, the best with {search.best.text}")
        candidates = [*self.zoo.bounds(self.data.tasks), self._tuned(write, search)]
        return compare(
            self.trainer,
            evaluate,
            self.data,
            {candidate.name: candidate for candidate in candidates},
            self.folder,
            seed=self.seed,
            command=command,
            notes=merger.held_out.notes(self.batch_norm, recalibrate),
            recalibrated=merger.held_out if recalibrate else None,
            references=References(self.folder, inputs),
        )

    def _tuned(self, write: Write, search: Search) -> Candidate:
        """Merge with the hyperparameters of the best trial."""
        method = self.space.method_at(search.best.point)
        cost, origin = write(method), method.origin()
        chosen = f"{search.best.text} of {search.total} trials chosen on the held-out examples"
        chosen += " of the seen tasks" if self.data.unseen else ""
        chosen += f"; {brief(method)}"
        return Candidate(
            self.name,
            self.file,
            cost=cost,
            note="; ".join(filter(None, [origin.note, chosen])),
            transductive=origin.transductive,
            seen=shown_to(method),
            searched={t.text: t.score.average for t in search.trials if t.score is not None},
        )

    def _score(self, write: Write, evaluate: Evaluate, method: Method) -> Score:
        """Merge and measure on the held-out examples."""
        seconds = write(method).seconds
        evaluate.show(Candidate(self.name, self.file))
        self.trainer.validate(evaluate, datamodule=self.data, verbose=False)
        found = evaluate.measured["val"]
        return Score(found.mean(self.data.seen), found.accuracy, seconds)


def table(trials: Sequence[Trial], tasks: Sequence[str]) -> str:
    """Return the markdown table of trials, best first, in percent on the held-out examples.

    Args:
        trials: At least one, in the order of the search.
        tasks: Columns.

    Examples:
        >>> score = Score(0.75, {"mnist": 0.9, "dtd": 0.6}, seconds=1.5)
        >>> print(table([Trial({"scale": 0.3}, score)], ["mnist", "dtd"]), end="")
        | trial | scale | average | mnist | dtd | seconds |
        | --: | --: | --: | --: | --: | --: |
        | 1 | 0.3 | 75.0 | 90.0 | 60.0 | 1.50 |
        <BLANKLINE>
        Accuracy on held-out examples in percent; no test example took part.
    """
    header = ["trial", *trials[0].point, "average", *tasks, "seconds"]
    ranked = sorted(enumerate(trials, 1), key=lambda pair: -_average(pair[1]))
    rows = [_cells(number, trial, tasks) for number, trial in ranked]
    written = markdown_table(header, rows, ["--:"] * len(header))
    return f"{written}\n\nAccuracy on held-out examples in percent; no test example took part.\n"


def _average(trial: Trial) -> float:
    return -1.0 if trial.score is None else trial.score.average


def _cells(number: int, trial: Trial, tasks: Sequence[str]) -> list[str]:
    point = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in trial.point.values()]
    if trial.score is None:
        return [str(number), *point, "refused", *[""] * (len(tasks) + 1)]
    values = [trial.score.average, *(trial.score.accuracy[task] for task in tasks)]
    return [
        str(number), *point, *(f"{100 * v:.1f}" for v in values), f"{trial.score.seconds:.2f}"
    ]  # fmt: skip
