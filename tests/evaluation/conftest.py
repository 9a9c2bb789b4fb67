from dataclasses import replace

import pytest

from lightning_merge.evaluation import CandidateResult, Results

TASKS = ("sun397", "cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")


def candidate(name, accuracies, tasks=TASKS, **kwargs):
    """A candidate; accuracies beyond those given are 0.5."""
    accuracies = [*accuracies, *[0.5] * (len(tasks) - len(accuracies))]
    return CandidateResult(
        name=name,
        accuracy=dict(zip(tasks, accuracies, strict=True)),
        samples={task: 100 * (row + 1) for row, task in enumerate(tasks)},
        seconds=1.5,
        **kwargs,
    )


def collect(*candidates, **kwargs):
    tasks = tuple(candidates[0].accuracy)
    fields = {"seed": 0, "versions": {"torch": "2.6.0", "cpus": "2"}} | kwargs
    return Results(tasks, {row.name: row for row in candidates}, **fields)


@pytest.fixture
def results():
    """Base and experts as bounds, three merged networks of which one is transductive."""
    return collect(
        candidate("base", [0.112, 0.301], bound=True),
        candidate("average", [0.61, 0.5504]),
        candidate("ties", [0.733, 0.5496], note="scale 0.2 chosen on validation"),
        candidate("ada_merging", [0.8, 0.75], transductive=True),
        candidate("individual", [0.9, 0.95], bound=True),
        command="python -m lightning_merge fit --config configs/quickstart.yaml",
        notes=("Coefficients were learned on 1 % of the validation split.",),
    )


@pytest.fixture
def seeds(results):
    """Three runs whose accuracies on the first task differ."""

    def run(seed, shift):
        rows = [
            replace(row, accuracy=row.accuracy | {"sun397": row.accuracy["sun397"] + shift})
            for row in results.candidates.values()
        ]
        return collect(*rows, seed=seed, command=results.command, notes=results.notes)

    return [run(0, 0.0), run(1, 0.031), run(2, -0.017)]
