"""Figures derived from accuracies, against the numbers of a published table and by hand."""

import json
from dataclasses import replace
from math import isnan
from statistics import fmean, stdev

import numpy as np
import pytest

from lightning_merge.evaluation import Results, aggregate
from lightning_merge.evaluation.derived import derived, h_score, normalised, share_of_gap
from lightning_merge.evaluation.tables import markdown

from .conftest import candidate, collect

TASKS = ("a", "b", "apart")


@pytest.fixture
def run():
    return collect(
        candidate("base", [0.4, 0.6, 0.5], tasks=TASKS, bound=True),
        candidate("individual", [0.8, 0.9, 0.3], tasks=TASKS, bound=True),
        candidate("ties", [0.6, 0.9, 0.4], tasks=TASKS),
        candidate("average", [0.4, 0.6, 0.1], tasks=TASKS),
        out_of_domain=("apart",),
    )


def test_the_figures_follow_from_the_accuracies(run):
    assert run.figures("ties") == pytest.approx(
        {
            "H-score": 2 / (1 / 0.75 + 1 / 0.4),
            "normalised": (0.6 / 0.8 + 1) / 2,
            "of the gap": 0.25 / 0.35,
        }
    )
    assert run.figures("base")["of the gap"] == 0
    assert run.figures("individual")["of the gap"] == run.figures("individual")["normalised"] == 1
    assert run.in_domain == ("a", "b")
    assert run.averages("ties") == pytest.approx({"average": 0.75, "average out of domain": 0.4})


def test_nothing_is_divided_by_zero():
    assert isnan(h_score(0, 0))
    assert isnan(normalised({"a": 0.5}, {"a": 0.0}))
    assert isnan(share_of_gap(0.5, base=0.5, experts=0.5))
    assert isnan(share_of_gap(0.5, base=0.6, experts=0.5))


def test_arrays_have_the_figures_of_their_entries():
    generator = np.random.default_rng(0)
    rows = {row: {task: generator.random(50) for task in "abc"} for row in ("base", "ties")}
    rows["individual"] = {task: np.round(generator.random(50), 1) for task in "abc"}
    found = derived(rows, "ties", ["a", "b"], ["c"])
    for place in range(50):
        one = {row: {t: float(v[place]) for t, v in cells.items()} for row, cells in rows.items()}
        for figure, value in derived(one, "ties", ["a", "b"], ["c"]).items():
            assert found[figure][place] == pytest.approx(value, nan_ok=True)
    assert 0 < np.isnan(found["of the gap"]).sum() < 50


@pytest.mark.parametrize(
    ("rows", "apart", "columns"),
    [
        (["ties"], [], []),
        (["ties"], ["b"], ["H-score"]),
        (["ties", "individual"], [], ["normalised"]),
        (["ties", "base"], [], []),
        (["ties", "base", "individual"], ["b"], ["H-score", "normalised", "of the gap"]),
    ],
)
def test_a_figure_needs_its_references(rows, apart, columns):
    accuracies = {key: {"a": 0.5, "b": 0.5} for key in rows}
    assert list(derived(accuracies, "ties", ["a"], apart)) == columns


def test_tables_and_files_have_them(run, tmp_path):
    text = markdown(run)
    assert "| average | average out of domain | H-score | normalised | of the gap |" in text
    row = next(line for line in text.splitlines() if line.startswith("| ties"))
    assert row.replace("*", "").split(" | ")[4:8] == ["75.0", "40.0", "52.2", "87.5"]
    stored = json.loads(run.to_json(tmp_path / "results.json").read_text())["candidates"]["ties"]
    assert stored["average"] == pytest.approx(0.75)
    assert stored["figures"]["H-score"] == pytest.approx(0.6 / 1.15)
    assert Results.from_json(tmp_path / "results.json") == run


def test_what_cannot_be_divided_is_blank_and_said(run):
    useless = replace(run.candidates["individual"], accuracy={"a": 0.4, "b": 0.0, "apart": 0.3})
    text = markdown(replace(run, candidates={**run.candidates, "individual": useless}))
    row = next(line for line in text.splitlines() if line.startswith("| ties"))
    assert row.rstrip(" |").endswith("| 52.2")
    assert "of its expert's. Blank where the divisor is zero." in text
    assert "the base's average. Blank where they add nothing." in text


def test_figures_of_seeds_are_spread_run_by_run(run):
    runs = []
    for seed, shift in enumerate([0.0, 0.05, -0.1]):
        rows = {
            name: replace(row, accuracy={task: v + shift for task, v in row.accuracy.items()})
            for name, row in run.candidates.items()
        }
        runs.append(replace(run, candidates=rows, seed=seed))
    total = aggregate(runs)
    for name in run.candidates:
        for column, spread in total.candidates[name].figures.items():
            values = [one.figures(name)[column] for one in runs]
            assert spread == pytest.approx((fmean(values), stdev(values)))
    assert "| ± " not in markdown(total)


@pytest.mark.parametrize("more", [{"joint": {"a": 0.2, "b": 0.4}}, {"distance": {"a": 1.0}}])
def test_what_only_one_of_the_runs_has_measured_is_blank(run, more):
    """`data.joint_labels` and `Representations` may be given to some seeds only."""
    ties = replace(run.candidates["ties"], **more)
    runs = [replace(run, candidates={**run.candidates, "ties": ties}), replace(run, seed=1)]
    total = aggregate(runs, "average")
    (column,) = more
    assert total.candidates["ties"].figures[column] is None
    assert column not in total.candidates["ties"].differences
    assert total.candidates["ties"].differences["average"].spread.mean == pytest.approx(0.25)


@pytest.mark.parametrize("known", ["a", "apart"])
def test_a_task_without_a_distance_leaves_no_mean(run, known, tmp_path):
    """None of the chosen images of a task may be among the first that are measured."""
    rows = {name: replace(row, distance={known: 1.0}) for name, row in run.candidates.items()}
    found = replace(run, candidates=rows)
    assert found.figures("ties")["distance"] is None
    assert found.figures("ties")["distance out of domain"] == (1 if known == "apart" else None)
    assert "Blank where no image of some task was looked at." in markdown(found)
    assert Results.from_json(found.to_json(tmp_path / "results.json")) == found
