"""All coefficient-learning methods on the mini suite, with and without LwPTV, in one table.

    python benchmarks/study.py --data-root DATA --group forms --seeds 0 1 2
    python benchmarks/study.py --data-root DATA --own-experts --runs runs/study-own

Finished runs are not repeated, so a stopped study resumes when it is started again, and two studies
with different seeds can run side by side.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from lightning_merge.cli.main import main as run
from lightning_merge.evaluation.aggregates import aggregate
from lightning_merge.evaluation.results import Results
from lightning_merge.evaluation.tables import markdown

SML = ["--config", "configs/mini/sml.yaml"]
FREE = [*SML, "--model.learner", "free", "--model.learning_rate", "1e-2"]
ADA = ["--config", "configs/mini/adamerging.yaml"]
TASK = ["--model.level", "task"]
TRIM = ["--trainer.callbacks+", "lightning_merge.callbacks.TrimTaskVectors"]
PRUNE = ["--trainer.callbacks+", "lightning_merge.callbacks.PruneTaskVectors"]
STATISTICS = ("mean", "variance", "norm", "singular_values")

GROUPS: dict[str, dict[str, list[str]]] = {
    "forms": {
        "adamerging_task": [*ADA, *TASK],
        "adamerging_task_pp": [*ADA, *TASK, *TRIM],
        "adamerging_layer": ADA,
        "adamerging_layer_pp": [*ADA, *TRIM],
        "sml_task": [*SML, *TASK],
        "sml_layer": SML,
        "sml_softmax": [*SML, "--model.normalize", "softmax", "--model.prior", "0.3"],
        "free_layer": FREE,
        "free_task": [*FREE, *TASK],
    },
    "learners": {
        "mlp4": [*SML, "--model.learner", "mlp4"],
        "transformer2": [*SML, "--model.learner", "transformer2"],
        "of_experts": [*SML, "--model.statistics_of", "experts"],
    },
    "features": {
        **{
            f"without_{name}": [*SML, "--model.features", str([f for f in STATISTICS if f != name])]
            for name in STATISTICS
        },
        **{f"rank_{rank}": [*SML, "--model.rank", str(rank)] for rank in (0, 1, 2, 4, 5)},
    },
    "teaching": {
        "soft_labels": [*SML, "--model.loss", "soft"],
        "true_labels": [*SML, "--model.loss", "labels"],
        "certain_third": [*SML, "--model.confidence", "[0, 0.3334]"],
        "middle_third": [*SML, "--model.confidence", "[0.3334, 0.6667]"],
        "uncertain_third": [*SML, "--model.confidence", "[0.6667, 1]"],
        **{
            f"images_{share}%": [*SML, "--data.coefficient_fraction", f"{share}%"]
            for share in (1, 5, 25, 50, 75)
        },
    },
    "transductive": {
        "adamerging_layer_on_test_images": [*ADA, "--model.transductive", "true"],
    },
}
"""Group -> name of a variant -> options of `fit`."""

THIRDS = dict.fromkeys(("certain_third", "middle_third", "uncertain_third"), 3.0)
LONGER = THIRDS | {
    "images_1%": 50.0,
    "images_5%": 25.0,
    "images_25%": 4.0,
    "images_50%": 2.0,
    "images_75%": 4 / 3,
    "adamerging_layer_on_test_images": 0.5,
}
"""Variants with fewer or more images -> how many times the epochs they get, for as many steps."""


def own_experts(seed: int) -> list[str]:
    """Write the recipe of experts fine-tuned with a run's seed; return their options of `fit`."""
    recipe = Path(f"runs/mini/expert-seed{seed}.yaml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load(Path("configs/mini/expert.yaml").read_text())
    recipe.write_text(json.dumps({**config, "seed_everything": seed}))  # JSON is YAML
    return [
        *("--model.zoo.expert_recipe", str(recipe)),
        *("--model.zoo.experts", f"runs/mini/experts-seed{seed}/{{task}}.safetensors"),
    ]


def arguments(name: str, options: Sequence[str], seed: int, given: argparse.Namespace) -> list[str]:
    """Return the arguments of one `fit`."""
    place = given.runs / name / f"seed{seed}"
    longer = LONGER.get(name.removesuffix("_lwptv"), 1.0)
    epochs = str(round(longer * given.epochs))
    drop = ["--model.step_size", str(round(2 * longer))] if options[:2] == SML[:2] else []
    return [
        *("fit", *options[:2], "--trainer.callbacks", "null", *options[2:], *drop),
        *("--model.name", name, "--data.root", given.data_root, "--seed_everything", str(seed)),
        *("--trainer.max_epochs", epochs, "--trainer.default_root_dir", str(place)),
        *("--data.batch_size", "8", "--trainer.enable_progress_bar", "false"),
        *(own_experts(seed) if given.own_experts else []),
    ]


def variants(given: argparse.Namespace) -> dict[str, list[str]]:
    """Return the requested variants, each followed by its version with LwPTV."""
    chosen: dict[str, list[str]] = {}
    for group in given.group:
        for name, options in GROUPS[group].items():
            chosen[name] = options
            if given.lwptv:
                # The mask comes before any trimming, as in LwPTV's Algorithm 1.
                chosen[f"{name}_lwptv"] = [*options[:2], *PRUNE, *options[2:]]
    return chosen


def table(found: Mapping[str, Sequence[Results]], command: str, against: str | None = None) -> str:
    """Return one table with the bounds and a row per variant, aggregated over several seeds.

    Args:
        found: The runs of each variant, with the same seeds in the same order.
        command: Command that made the table.
        against: With several seeds, the variant to which differences of all others are given.
    """
    joined = []
    for runs in zip(*found.values(), strict=True):
        rows = {name: row for name, row in runs[0].candidates.items() if row.bound}
        rows |= {name: run.candidates[name] for name, run in zip(found, runs, strict=True)}
        notes = tuple(dict.fromkeys(note for run in runs for note in run.notes))
        joined.append(replace(runs[0], candidates=rows, command=command, notes=notes))
    return markdown(aggregate(joined, against) if len(joined) > 1 else joined[0])


def check_against(
    parser: argparse.ArgumentParser, given: argparse.Namespace, rows: Collection[str]
) -> None:
    """Reject --against with an unknown row or a single seed, before anything runs."""
    if given.against is not None and (given.against not in rows or len(given.seeds) < 2):
        parser.error(
            f"--against {given.against} --seeds {given.seeds}: give one of {', '.join(rows)}, and "
            "two seeds or more"
        )


def main() -> int:
    """Run what has not finished yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data-root", required=True, help="the suite's images")
    add("--runs", type=Path, default=Path("runs/study"), help="folder of the runs")
    add("--group", nargs="+", choices=GROUPS, default=["forms"], help="which variants")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--epochs", type=int, default=4, help="about 50 steps each with all images")
    add("--lwptv", action="store_true", help="each variant also with LwPTV")
    add("--own-experts", action="store_true", help="each seed fine-tunes experts of its own")
    add("--against", help="variant from which the others' differences are taken")
    given = parser.parse_args()
    check_against(parser, given, variants(given))
    found: dict[str, list[Results]] = {}
    for seed in given.seeds:
        for name, options in variants(given).items():
            if code := run(arguments(name, options, seed, given)):
                print(f"{name}, seed {seed}: failed", file=sys.stderr)
                return code
            file = given.runs / name / f"seed{seed}" / "results.json"
            found.setdefault(name, []).append(Results.from_json(file))
    print(table(found, shlex.join(["python", *sys.argv]), given.against))
    return 0


if __name__ == "__main__":
    sys.exit(main())
