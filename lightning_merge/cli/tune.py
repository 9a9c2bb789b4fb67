"""The tune command: hyperparameters chosen on held-out images, and tested once."""

import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_info

from lightning_merge.cli import record, stages
from lightning_merge.cli.lightning import DATA_OF_A_TASK, MergeCLI
from lightning_merge.cli.merging import ZooMerger
from lightning_merge.cli.parser import Parser
from lightning_merge.cli.show import show
from lightning_merge.cli.trainer import check_seed, refusals
from lightning_merge.core.errors import InputError
from lightning_merge.core.files import write_text
from lightning_merge.core.names import enumerate_names
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.evaluation.candidates import BOUNDS, Candidate
from lightning_merge.evaluation.results import Results
from lightning_merge.evaluation.tables import markdown_line
from lightning_merge.methods.base import Method, brief
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.compare import compare
from lightning_merge.modules.evaluate import Evaluate
from lightning_merge.modules.space import Range, Space
from lightning_merge.modules.tuning import Sampler, Score, Search, Trial
from lightning_merge.modules.zoo import Zoo

WITHOUT_EFFECT = ("trials", "overwrite", "folder", "config", "data")
"""Options that no trial depends on, and those of the data, which have a record of their own."""


class Tune:
    """Choose hyperparameters of a merge method on held-out images; test the best once.

    The run folder receives config.yaml, splits.json, run.json, the table of trials (trials.json,
    trials.md) after each of them, and at the end merged/NAME.safetensors, results.json and
    results.md. The same command goes on with what a stopped run left. What the
    zoo lacks is made first.

    Args:
        encoder: architecture of the base and the experts.
        zoo: files of base, experts and heads.
        data: the tasks; all held-out images of the seen ones decide.
        method: a merge method, or a network method, with the hyperparameters that are not chosen.
        space: hyperparameter -> its range: {low: 0.05, high: 1.0, log: true}, or a list of
            choices. Those of transforms are called as in LwPTV.prune_ratio.
        trials: how many points to try; the first is the method as given if it lies in the space.
        sampler: "tpe" or "random". A space of no more points than trials is tried whole.
        name: of the merged network in tables and files; the method's name without one.
        folder: the run folder.
        seed_everything: seed of the sampler, and of methods that draw numbers.
        recalibrate: give merged networks with BatchNorm the statistics of held-out images.
        accelerator: what the network runs on, as Lightning's Trainer calls it.
        overwrite: replace results of another configuration in the run folder.

    Raises:
        InputError: the space does not fit the method, a number is out of range, the name is that
            of a reference, or Lightning refuses the accelerator.
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
        recalibrate: bool = True,
        accelerator: str = "auto",
        overwrite: bool = False,
    ) -> None:
        self.encoder, self.zoo, self.data, self.method = encoder, zoo, data, method
        self.space = Space(method, {name: Range.of(name, given) for name, given in space.items()})
        self.trials, self.sampler, self.seed = trials, sampler, seed_everything
        self.name = name or f"{type(method).__name__.lower()}_tuned"
        self.folder, self.overwrite = Path(folder), overwrite
        self.recalibrate = recalibrate
        self._check()
        with refusals(f"accelerator={accelerator!r}"):
            self.trainer = Trainer(
                accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            )  # fmt: skip

    def _check(self) -> None:
        """Check what can be told before any file is opened."""
        check_seed(self.seed)
        if self.trials < 1:
            raise InputError(f"trials={self.trials}: give 1 or more")
        if self.name in BOUNDS:
            raise InputError(f"name={self.name!r} is that of a reference; give another")
        if len(self.data.seen) < 2:
            raise InputError(
                f"data.tasks={list(self.data.seen)}: merging takes two tasks or more that are not "
                "unseen"
            )
        if known := sorted(set(self.method.origin().tasks) & set(self.data.unseen)):
            raise InputError(
                f"data.unseen={list(self.data.unseen)}: the method merges by what was learned on "
                f"{enumerate_names(known)}; take a file that was not"
            )

    def run(self, config: Mapping[str, Any], save: Callable[[Path], None], command: str) -> Results:
        """Make what the zoo lacks, search, and measure.

        Args:
            config: all options, as `record.plain` returns them.
            save: writes them into a file.
            command: that made the run, for the record.

        Raises:
            InputError: files are missing or do not fit, or the run folder holds the results of
                another configuration.
        """
        stages.check(self.zoo, self.encoder, self.data.tasks)
        self.data.load(test=None)
        before = record.read(self.folder / "run.json")
        now = record.stored(self._describe(config))
        self._keep_results({name: before.get(name) for name in now}, now)
        self._fill_zoo(config)
        now |= record.stored(record.describe_files(self.zoo.inputs(self.data.tasks)))
        self._keep_results(before, now)
        finished = self.folder / "results.json"
        if before == now and finished.exists() and self.file.exists():
            return Results.from_json(finished)
        self._take_folder(before, now)
        save(self.folder / "config.yaml")
        seed_everything(self.seed, verbose=False)
        return self._search(command)

    @property
    def file(self) -> Path:
        """Where the merged network lies: that of the trial under way, at the end the best one."""
        return self.folder / "merged" / f"{self.name}.safetensors"

    # The run folder

    def _describe(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the numbers depend on, files apart; see `record`."""
        options = {name: value for name, value in config.items() if name not in WITHOUT_EFFECT}
        described = record.describe_options({"model": options, "data": config["data"]})
        return {**described, "trials": self.trials, **record.describe_images(self.data)}

    def _keep_results(self, before: record.Record, now: record.Record) -> None:
        """Raise InputError where results would be lost that belong to another run than this.

        More trials than before include them.
        """
        if self.overwrite or not (self.folder / "results.json").exists():
            return
        if before.get("trials", 0) < self.trials:
            before = {**before, "trials": self.trials}
        if changed := record.differences(before, now):
            raise InputError(
                f"{self.folder} holds the results of another configuration or other inputs: "
                f"{changed}. Give another --folder, or --overwrite true to replace them"
            )

    def _take_folder(self, before: record.Record, now: record.Record) -> None:
        """Forget the results, and the trials unless more of the same ones are wanted."""
        old = ["results.json", "results.md"]
        if {**before, "trials": None} != {**now, "trials": None}:
            old += ["trials.json", "trials.md"]
        for name in old:
            (self.folder / name).unlink(missing_ok=True)
        self.data.write_splits(self.folder / "splits.json")
        record.write(now, self.folder / "run.json")

    def _fill_zoo(self, config: Mapping[str, Any]) -> None:
        stages.prepare(
            self.zoo,
            self.encoder,
            {"encoder": config["encoder"], "zoo": config["zoo"]},
            self.data,
            {key: config["data"][key] for key in DATA_OF_A_TASK},
            fit=lambda arguments: MergeCLI(["fit", *arguments], alone=True),
        )
        self.data.preprocess = None  # forget the decoded train images

    # The search

    def _search(self, command: str) -> Results:
        kept = self.folder / "trials.json"
        search = Search(self.space, kept, self.trials, self.sampler, self.seed)
        if search.trials:
            rank_zero_info(f"going on after trial {len(search.trials)} in {kept}")
        device = self.trainer.strategy.root_device
        merger = ZooMerger(self.encoder, self.zoo, self.data, device, self.recalibrate)
        evaluate = Evaluate(self.encoder, self.zoo.heads, self.zoo.base)

        def keep() -> None:
            write_text(self.folder / "trials.md", table(search.trials, self.data.tasks))

        def report(last: Trial) -> None:
            found = f"{100 * last.score.average:.2f} %" if last.score else last.refused
            count = f"trial {len(search.trials)} of {search.total}"
            rank_zero_info(f"{count}: {last.text}: {found}")
            keep()

        rank_zero_info(f"tuning {brief(self.method)}")
        search.run(lambda method: self._score(merger, evaluate, method), report)
        keep()
        candidates = [*self.zoo.bounds(self.data.tasks), self._tuned(merger, search)]
        return compare(
            self.trainer,
            evaluate,
            self.data,
            {candidate.name: candidate for candidate in candidates},
            self.folder,
            seed=self.seed,
            command=command,
        )

    def _tuned(self, merger: ZooMerger, search: Search) -> Candidate:
        """Merge by the best trial."""
        method = self.space.method_at(search.best.point)
        made, origin = merger.merge(method, self.file), method.origin()
        chosen = f"{search.best.text} of {search.total} trials chosen on the held-out images"
        chosen += " of the seen tasks" if self.data.unseen else ""
        chosen += f"; {brief(method)}"
        return Candidate(
            self.name,
            self.file,
            **made._asdict(),
            note="; ".join(filter(None, [origin.note, chosen])),
            transductive=origin.transductive,
        )

    def _score(self, merger: ZooMerger, evaluate: Evaluate, method: Method) -> Score:
        """Merge, and measure on the held-out images."""
        seconds = merger.merge(method, self.file).seconds
        evaluate.show(Candidate(self.name, self.file))
        self.trainer.validate(evaluate, datamodule=self.data, verbose=False)
        found = evaluate.measured["val"]
        return Score(found.mean(self.data.seen), found.accuracy, seconds)


def table(trials: Sequence[Trial], tasks: Sequence[str]) -> str:
    """Return the markdown table of trials, best first, in percent on the held-out images.

    Args:
        trials: at least one, in the order of the search.
        tasks: columns.
    """
    header = ["trial", *trials[0].point, "average", *tasks, "seconds"]
    ranked = sorted(enumerate(trials, 1), key=lambda pair: -_average(pair[1]))
    lines = [header, ["--:"] * len(header), *(_cells(n, trial, tasks) for n, trial in ranked)]
    rows = "\n".join(map(markdown_line, lines))
    return f"{rows}\n\nAccuracy on held-out images in percent; no test image took part.\n"


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


def tune(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: the words after `tune`.
    """
    about = inspect.cleandoc(Tune.__doc__ or "").partition("\n\nArgs:")[0]
    parser = Parser(prog="python -m lightning_merge tune", description=about)
    parser.add_argument("--config", action="config", help="YAML file of options")
    parser.add_class_arguments(Tune, as_group=False)
    config = parser.parse_args(arguments)
    plain = record.plain(config)
    plain["data"] = plain["data"].get("init_args", plain["data"])
    options = parser.instantiate_classes(config)
    options.pop("config", None)

    def save(file: Path) -> None:
        write_text(file, parser.dump(config, skip_none=False))

    run = Tune(**dict(options.items()))
    command = shlex.join(["python", "-m", "lightning_merge", "tune", *arguments])
    results = run.run(plain, save, command)
    show(
        results, run.folder, run.file, (c.note for c in results.candidates.values() if not c.bound)
    )
