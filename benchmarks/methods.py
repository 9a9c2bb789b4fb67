"""Every merge method on the mini suite, each with and without LwPTV, chosen on held-out images.

    python benchmarks/methods.py --data-root DATA --group weights --seeds 0
    python benchmarks/methods.py --data-root DATA --group random data networks --seeds 0 1 2
    python benchmarks/methods.py --data-root DATA --own-experts --runs runs/own --seeds 0 1 2

Finished runs are not repeated, so a stopped benchmark resumes when it is started again.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from study import Run, check_against, own_experts, table

from lightning_merge.cli.main import main as run

SUITE = "configs/mini/sml.yaml"
SCALES = {"scale": [0.05, 0.1, 0.15, 0.2, 0.3]}
WIDE = {"scale": [0.1, 0.25, 0.5, 1.0, 1.5]}
SUM = ("TaskArithmetic", {}, SCALES)
OF_SUM = {"TaskArithmetic.scale": SCALES["scale"]}
Entry = tuple[str, dict[str, Any], dict[str, list[float]]]
"""Class, options, and grid of a method."""


def _transformed(*transforms: str, **options: Any) -> dict[str, Any]:
    """Return the options of a method with transforms, the last of which takes the options."""
    given: list[dict[str, Any]] = [{"class_path": transform} for transform in transforms]
    given[-1]["init_args"] = options
    return {"transforms": given}


GROUPS: dict[str, dict[str, Entry]] = {
    "weights": {
        "average": ("Average", {}, {}),
        "task_arithmetic": SUM,
        "ties": ("Ties", {}, WIDE),
        "wise_ft": ("Average", _transformed("WiSEFT"), {}),
        "magnitude_pruning": (*SUM[:1], _transformed("MagnitudePruning"), SCALES),
        "absolute_pruning": (*SUM[:1], _transformed("AbsolutePruning"), SCALES),
        "pwptv": (*SUM[:1], _transformed("LwPTV", granularity="parameter"), SCALES),
        "pcb": ("PCB", {}, WIDE),
        "consensus": ("Consensus", {}, WIDE),
        "lines": ("LiNeS", {}, {"beta": [0.25, 0.5, 1.0]}),
        "model_stock": ("ModelStock", {}, {}),
        "knots": ("KnOTS", {}, WIDE),
        "tsvm": ("TSVM", {}, WIDE),
        "iso_c": ("IsoC", {}, WIDE),
        "iso_cts": ("IsoCTS", {}, WIDE),
    },
    "random": {
        "dare": (*SUM[:1], _transformed("Dare"), SCALES),
        "random_pruning": (*SUM[:1], _transformed("RandomPruning"), SCALES),
    },
    "data": {
        "m_ties": ("MTies", {}, WIDE),
        "m_dare": ("MDare", {}, SCALES),
        "fisher": ("Fisher", {}, {}),
        "regmean": ("RegMean", {}, {}),
        "regmean_pp": ("RegMeanPlusPlus", {}, {}),
    },
    "networks": {
        "emr": ("EMR", {}, {}),
        "surgery": ("Surgery", {"method": {"class_path": "TaskArithmetic"}}, OF_SUM),
        "wemoe": ("WEMoE", {"scale": 0.1, "prior": 0.1, "steps": 100}, {}),
        "ensemble": ("Ensemble", {}, {}),
    },
}
"""Group -> row of the table -> method."""


def with_lwptv(group: Mapping[str, Entry]) -> Iterator[tuple[str, Entry]]:
    """Yield every method, each followed by its version with LwPTV's mask."""
    for name, (kind, options, grid) in group.items():
        yield name, (kind, options, grid)
        transforms = [{"class_path": "LwPTV"}, *options.get("transforms", [])]
        yield f"{name}_lwptv", (kind, {**options, "transforms": transforms}, grid)


def config(methods: Mapping[str, Entry]) -> dict[str, Any]:
    """Return the trainer section of a config, with one callback per method."""
    callbacks = [
        {
            "class_path": "lightning_merge.callbacks.MergeCallback",
            "init_args": {
                "name": name,
                "method": {"class_path": kind, "init_args": options},
                "grid": grid,
            },
        }
        for name, (kind, options, grid) in methods.items()
    ]
    return {"trainer": {"callbacks": callbacks}}


def arguments(
    place: Path, methods: Mapping[str, Entry], seed: int, given: argparse.Namespace
) -> list[str]:
    """Write the config of a run next to its folder; return the arguments of `fit`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    file = place.with_suffix(".yaml")
    file.write_text(json.dumps(config(methods)))  # JSON is YAML
    multi_task = [
        *("--model.zoo.multi_task", "runs/mini/multi_task.safetensors"),
        *("--model.zoo.multi_task_recipe", "configs/mini/multitask.yaml"),
    ]
    return [
        *("fit", "--config", given.config, "--config", str(file)),
        *(multi_task if given.config == SUITE and not given.own_experts else []),
        *(own_experts(seed, Path(given.config).parent.name) if given.own_experts else []),
        *("--data.root", given.data_root, "--data.unlabelled_inputs", str(given.images)),
        *("--model.name", "start", "--trainer.max_epochs", "0"),  # nothing is learned
        *("--trainer.default_root_dir", str(place), "--trainer.enable_progress_bar", "false"),
        *("--seed_everything", str(seed), *given.options),
    ]


def main() -> int:
    """Run what has not finished yet; print one table of all groups."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data-root", required=True, help="the suite's images")
    add("--runs", type=Path, default=Path("runs/methods"), help="folder of the runs")
    add("--group", nargs="+", choices=GROUPS, default=[*GROUPS], help="which methods")
    known = [row for group in GROUPS.values() for row in group]
    add("--methods", nargs="+", choices=known, default=known, metavar="ROW", help="and with LwPTV")
    add("--config", default=SUITE, help="the run whose experts are merged")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--images", type=int, default=512, help="unlabelled held-out images, of all tasks")
    add("--own-experts", action="store_true", help="of each seed, without multi_task")
    add("--against", help="row from which the others' differences are taken")
    add("options", nargs="*", help="more options of fit, after --")
    given = parser.parse_args()
    if given.own_experts and Path(given.config).name != "sml.yaml":
        parser.error(f"--own-experts are those of a suite's sml.yaml, such as {SUITE}")
    chosen = {
        group: dict(with_lwptv({k: v for k, v in GROUPS[group].items() if k in given.methods}))
        for group in given.group
    }
    check_against(parser, given, [row for methods in chosen.values() for row in methods])
    found: dict[str, list[Run]] = {}
    for group, methods in chosen.items():
        for seed in given.seeds if methods else []:
            place = given.runs / group / f"seed{seed}"
            if code := run(arguments(place, methods, seed, given)):
                print(f"{group}, seed {seed}: failed", file=sys.stderr)
                return code
            finished = Run.read(place)
            for name in methods:
                found.setdefault(name, []).append(finished)
    print(table(found, shlex.join(["python", *sys.argv]), given.against))
    return 0


if __name__ == "__main__":
    sys.exit(main())
