"""Studies of a suite that take several runs, each in one table.

    python benchmarks/study.py --data-root DATA --group forms --seeds 0 1 2
    python benchmarks/study.py --data-root DATA --group plug_in --against task_arithmetic
    python benchmarks/study.py --data-root DATA --own-experts --runs runs/study-own
    python benchmarks/study.py --data-root DATA --suite imagenet --group eta teaching --jobs 8

A group is a config in configs/claims. It is laid over a config of the suite, once for each of its
`variants`, or alone. Finished runs are not repeated, so a stopped study resumes when it is started
again, and two studies with different seeds can run side by side. With `--jobs` above 1 every run
has a process of its own and prints into a file beside its folder, `RUN.log`.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_merge.cli.main import main as run
from lightning_merge.evaluation.aggregates import aggregate
from lightning_merge.evaluation.correctness import Correctness
from lightning_merge.evaluation.results import Results
from lightning_merge.evaluation.tables import markdown

Config = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
GROUPS = {file.stem: file for file in sorted(ROOT.glob("configs/claims/*/*.yaml"))}
"""Group -> its config."""
ONE_ZOO = ("sml", "adamerging")
"""The configs of a suite that merge the same experts."""
START = "start"
"""Name of a module that learns nothing; its row is left out."""
PRUNE = {"class_path": "lightning_merge.callbacks.PruneTaskVectors"}
DRAW = {"class_path": "lightning_merge.callbacks.CoefficientMap"}


@dataclass(frozen=True)
class Variant:
    """One `fit` of a study.

    Attributes:
        name: Row of the network that it learns, and folder of its runs.
        config: What is laid over the suite's config.
        over: Which of the suite's configs that is, without .yaml; None for that of the study.
        longer: How many times the epochs of other variants it gets, for as many steps with more or
            fewer images.
    """

    name: str
    config: Config
    over: str | None = None
    longer: float = 1.0

    @property
    def callbacks(self) -> list[Config]:
        """The callbacks of the config."""
        return self.config.get("trainer", {}).get("callbacks", [])

    @property
    def learned(self) -> str:
        """The name of the network that is learned, or START."""
        return self.config.get("model", {}).get("init_args", {}).get("name", self.name)

    @property
    def rows(self) -> list[str]:
        """The names of the merged networks that it makes."""
        given = (callback.get("init_args", {}).get("name") for callback in self.callbacks)
        merged = [name for name in given if name]
        return merged if self.learned == START else [self.name, *merged]

    def behind_lwptv(self) -> "Variant":
        """Return the variant with LwPTV's mask, which precedes any trimming (Algorithm 1)."""
        pruned = {"trainer": {"callbacks": [PRUNE, *self.callbacks]}}
        return replace(self, name=f"{self.name}_lwptv", config=laid(self.config, pruned))

    def overlay(self, epochs: int) -> Config:
        """Return the whole config to lay over the suite's.

        Args:
            epochs: Epochs of a variant that learns from all images.
        """
        model: Config = {"name": self.name}
        if self.over != "adamerging" and "class_path" not in self.config.get("model", {}):
            model["step_size"] = round(2 * self.longer)
        drawn = [] if self.learned == START else [DRAW]
        default = {
            "model": {"init_args": model},
            "data": {"batch_size": 8},
            "trainer": {"max_epochs": round(self.longer * epochs)},
        }
        return laid(
            laid(default, self.config), {"trainer": {"callbacks": [*self.callbacks, *drawn]}}
        )


def laid(below: Config, above: Config) -> Config:
    """Return a config laid over another, mapping by mapping."""
    both = {
        key: laid(below[key], value)
        if isinstance(value, dict) and isinstance(below.get(key), dict)
        else value
        for key, value in above.items()
    }
    return {**below, **both}


def read(group: str) -> Iterator[Variant]:
    """Yield the variants of a group; a config without any is its own only variant."""
    config = yaml.safe_load(GROUPS[group].read_text(encoding="utf-8"))
    variants = config.pop("variants", {group: {}})
    for name, own in variants.items():
        options = {key: own[key] for key in ("over", "longer") if key in own}
        own = {key: value for key, value in own.items() if key not in options}
        yield Variant(name, laid(config, own), **options)


def own_experts(seed: int, suite: str = "mini") -> list[str]:
    """Return the options of `fit` for experts that are fine-tuned with a run's seed."""
    return [
        *("--model.zoo.expert_seed", str(seed)),
        *("--model.zoo.experts", f"runs/{suite}/experts-seed{seed}/{{task}}.safetensors"),
    ]


def place(variant: Variant, seed: int, given: argparse.Namespace) -> Path:
    """Return the folder of a run."""
    return Path(given.runs / variant.name / f"seed{seed}")


def arguments(variant: Variant, seed: int, given: argparse.Namespace) -> list[str]:
    """Write the config of one `fit` next to its folder; return the arguments."""
    folder = place(variant, seed, given)
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".yaml")
    file.write_text(json.dumps(variant.overlay(given.epochs)))  # JSON is YAML
    suite = f"configs/{given.suite}/{variant.over}.yaml"
    return [
        *("fit", "--config", suite, "--config", str(file), "--data.root", given.data_root),
        *("--seed_everything", str(seed), "--trainer.default_root_dir", str(folder)),
        *("--trainer.enable_progress_bar", "false"),
        *(own_experts(seed, given.suite) if given.own_experts else []),
        *given.options,
    ]


def fit_all(todo: Mapping[Path, list[str]], jobs: int) -> bool:
    """Run `fit` with the arguments of every folder; return whether all have finished.

    Args:
        todo: Folder of a run -> its arguments.
        jobs: Runs at a time. One at a time share this process, and the first that fails ends the
            study; several do not, and the others still run.
    """

    def fit(folder: Path) -> bool:
        if jobs == 1:
            failed = run(todo[folder])
        else:
            with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
                command = [sys.executable, "-m", "lightning_merge", *todo[folder]]
                failed = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        if failed:
            print(f"{folder}: failed", file=sys.stderr)
        return not failed

    if jobs == 1:
        return all(map(fit, todo))
    with ThreadPoolExecutor(jobs) as pool:
        return all([*pool.map(fit, todo)])


def variants(given: argparse.Namespace) -> list[Variant]:
    """Return the requested variants, each once with its `over`, and its version with LwPTV."""
    chosen: dict[str, Variant] = {}
    for variant in (variant for group in given.group for variant in read(group)):
        variant = replace(variant, over=variant.over or given.over)
        chosen[variant.name] = variant
        if given.lwptv and variant.learned != START:
            pruned = variant.behind_lwptv()
            chosen[pruned.name] = pruned
    return [*chosen.values()]


class Run(NamedTuple):
    """A finished run.

    Attributes:
        results: Its table.
        right: Which test images its candidates classified correctly, if it has stored that.
    """

    results: Results
    right: Correctness | None = None

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read what a run has left in its folder."""
        return cls(Results.from_json(folder / "results.json"), Correctness.read(folder))


def joined(rows: Mapping[str, Run]) -> Run:
    """Return rows of several runs as those of one; the first run gives what they share."""
    first, *_ = rows.values()
    candidates = {name: run.results.candidates[name] for name, run in rows.items()}
    notes = tuple(dict.fromkeys(note for run in rows.values() for note in run.results.notes))
    results = replace(first.results, candidates=candidates, notes=notes)
    stored = {name: run.right for name, run in rows.items() if run.right is not None}
    digests = [right.digests for right in stored.values()]
    if len(stored) < len(rows) or any(other != digests[0] for other in digests):
        return Run(results)
    right = {name: right.right[name] for name, right in stored.items()}
    return Run(results, Correctness(digests[0], right))


def table(
    found: Mapping[str, Sequence[Run]],
    command: str,
    against: str | None = None,
    columns: str = "all",
) -> str:
    """Return one table with the bounds and a row per variant, aggregated over the seeds.

    Args:
        found: The runs of each variant, with the same seeds in the same order.
        command: Command that made the table.
        against: Variant from which the differences of all others are given.
        columns: "all", or "averages" without single tasks.
    """
    runs = []
    for of_seed in zip(*found.values(), strict=True):
        first = of_seed[0]
        bounds = {name: first for name, row in first.results.candidates.items() if row.bound}
        runs.append(joined({**bounds, **dict(zip(found, of_seed, strict=True))}))
    results = [replace(run.results, command=command) for run in runs]
    return markdown(aggregate(results, against, [run.right for run in runs]), columns=columns)


def check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> list[Variant]:
    """Return the variants; reject what cannot become one table before anything runs."""
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: give 1 or more")
    chosen = variants(given)
    rows = Counter(row for variant in chosen for row in variant.rows)
    if twice := [row for row, count in rows.items() if count > 1]:
        parser.error(f"several variants make the row {', '.join(twice)}; give fewer groups")
    others = {variant.over for variant in chosen if variant.over not in ONE_ZOO}
    if given.own_experts and others:
        parser.error(
            f"--own-experts are those of {' and '.join(ONE_ZOO)}, and not of "
            f"{', '.join(sorted(map(str, others)))}; give other groups or --over"
        )
    check_against(parser, given, rows)
    return chosen


def check_against(
    parser: argparse.ArgumentParser, given: argparse.Namespace, rows: Collection[str]
) -> None:
    """Reject --against with an unknown row before anything runs."""
    if given.against is not None and given.against not in rows:
        parser.error(f"--against {given.against}: give one of {', '.join(rows)}")


def main() -> int:
    """Run what has not finished yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data-root", required=True, help="the suite's images")
    add("--suite", default="mini", help="folder of configs to lay the groups over")
    add("--over", default="sml", help="which of them, where a variant does not say")
    add("--runs", type=Path, default=Path("runs/study"), help="folder of the runs")
    add("--group", nargs="+", choices=GROUPS, default=["forms"], help="which configs")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--epochs", type=int, default=4, help="about 50 steps each with all images")
    add("--lwptv", action="store_true", help="each variant also with LwPTV")
    add("--own-experts", action="store_true", help="each seed fine-tunes experts, for sml's zoo")
    add("--jobs", type=int, default=1, help="runs at a time")
    add("--against", help="row from which the others' differences are taken")
    add("--columns", choices=["all", "averages"], default="all", help="with or without tasks")
    add("options", nargs="*", help="more options of fit, after --")
    given = parser.parse_args()
    chosen = check(parser, given)
    todo = [(variant, seed) for seed in given.seeds for variant in chosen]
    if not fit_all({place(*one, given): arguments(*one, given) for one in todo}, given.jobs):
        return 1
    found: dict[str, list[Run]] = {}
    for variant, seed in todo:
        finished = Run.read(place(variant, seed, given))
        for row in variant.rows:
            found.setdefault(row, []).append(finished)
    print(table(found, shlex.join(["python", *sys.argv]), given.against, given.columns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
