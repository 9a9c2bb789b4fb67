import json
import subprocess
import sys
from dataclasses import replace
from statistics import mean, stdev

import pytest

from lightning_merge.core.errors import InputError
from lightning_merge.evaluation import CandidateResult, Results, aggregate, versions

from .conftest import TASKS, candidate, collect


def test_average_counts_every_task_alike():
    row = CandidateResult("a", {"x": 0.2, "y": 0.6}, {"x": 10, "y": 1000}, 0.0)
    assert row.average == pytest.approx(0.4)


def test_json_round_trip_keeps_everything_and_the_order(results, tmp_path):
    path = results.to_json(tmp_path / "results.json")
    read = Results.from_json(path)
    assert read == results
    assert list(read.candidates) == list(results.candidates)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_json_has_the_documented_form(tmp_path):
    run = collect(candidate("ties", [0.25, 0.75], tasks=("cars", "dtd")), seed=3)
    assert json.loads(run.to_json(tmp_path / "results.json").read_text()) == {
        "tasks": ["cars", "dtd"],
        "candidates": {
            "ties": {
                "accuracy": {"cars": 0.25, "dtd": 0.75},
                "average": 0.5,
                "samples": {"cars": 100, "dtd": 200},
                "seconds": 1.5,
            }
        },
        "seed": 3,
        "versions": {"torch": "2.6.0", "cpus": "2"},
    }


UNSEEN = ("cars", "dtd")


def test_the_averages_are_over_seen_and_unseen_tasks():
    row = candidate("a", [0.9, 0.2, 0.4, 0.6], tasks=("svhn", "cars", "mnist", "dtd"))
    averages = row.averages(UNSEEN)
    assert list(averages) == ["average", "average seen", "average unseen"]
    assert [*averages.values()] == pytest.approx([0.525, 0.65, 0.4])
    assert row.averages() == {"average": row.average}


def test_json_names_unseen_tasks_only_where_there_are_any(results, tmp_path):
    held_out = replace(results, unseen=UNSEEN)
    assert Results.from_json(held_out.to_json(tmp_path / "results.json")) == held_out
    content = json.loads((tmp_path / "results.json").read_text())
    assert content.pop("unseen") == [*UNSEEN]
    assert json.loads(results.to_json(tmp_path / "results.json").read_text()) == content


def test_json_and_aggregates_keep_whose_division_it_is(results, seeds, tmp_path):
    own = ("sun397", "eurosat")
    marked = replace(results, own_split=own)
    assert Results.from_json(marked.to_json(tmp_path / "results.json")) == marked
    assert json.loads((tmp_path / "results.json").read_text())["own_split"] == [*own]
    assert "own_split" not in results.to_json(tmp_path / "plain.json").read_text()
    assert aggregate([replace(run, own_split=own) for run in seeds]).own_split == own
    with pytest.raises(InputError, match=r"differ in own_split \['eurosat', 'sun397'\]"):
        aggregate([replace(seeds[0], own_split=own), *seeds[1:]])


@pytest.mark.parametrize("unseen", [("elsewhere",), TASKS])
def test_unseen_tasks_are_some_of_the_tasks(unseen):
    with pytest.raises(InputError, match="some of the tasks, not all"):
        collect(candidate("ties", []), unseen=unseen)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "{",
        "[]",
        "{}",
        '{"candidates": {"a": 1}}',
        '{"candidates": {"a": {"accuracy": {"x": "high"}, "samples": {"x": 1}, "seconds": 0}}}',
    ],
)
def test_unreadable_json_is_one_error_naming_the_file(content, tmp_path):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"cannot read results from .*results\.json"):
        Results.from_json(path)


@pytest.mark.parametrize(
    ("accuracy", "samples", "message"),
    [
        ({"x": 1.01}, {"x": 1}, "'x' is 1.01"),
        ({"x": -0.1}, {"x": 1}, "'x' is -0.1"),
        ({"x": float("nan")}, {"x": 1}, "'x' is nan"),
        ({"x": 0.5}, {"x": 0}, "samples of candidate 'a' on 'x' is 0"),
        ({"x": 0.5}, {"y": 5}, "same tasks"),
        ({}, {}, "at least one"),
    ],
)
def test_impossible_measurements_are_errors(accuracy, samples, message):
    with pytest.raises(InputError, match=message):
        CandidateResult("a", accuracy, samples, 0.0)


@pytest.mark.parametrize(
    ("tasks", "candidates", "message"),
    [
        (TASKS, {}, "candidates is empty"),
        (TASKS, {"other": candidate("ties", [])}, "'ties' under the name 'other'"),
        (TASKS[1:], {"ties": candidate("ties", [])}, "every task"),
        ((*TASKS, "dtd"), {"ties": candidate("ties", [])}, "each named once"),
    ],
)
def test_incomplete_results_are_errors(tasks, candidates, message):
    with pytest.raises(InputError, match=message):
        Results(tasks, candidates, 0, {})


def test_aggregate_equals_the_statistics_module(seeds):
    total = aggregate(seeds)
    assert total.seeds == (0, 1, 2)
    assert total.tasks == TASKS
    for name, row in total.candidates.items():
        runs = [run.candidates[name] for run in seeds]
        for task in TASKS:
            values = [run.accuracy[task] for run in runs]
            assert row.accuracy[task] == pytest.approx((mean(values), stdev(values)))
        averages = [run.average for run in runs]
        assert row.average == pytest.approx((mean(averages), stdev(averages)))
        assert (row.bound, row.transductive) == (runs[0].bound, runs[0].transductive)


def test_aggregate_has_the_spread_of_every_average(seeds):
    total = aggregate([replace(run, unseen=UNSEEN) for run in seeds])
    assert total.unseen == UNSEEN
    for name, row in total.candidates.items():
        for what in ("average", "average seen", "average unseen"):
            values = [run.candidates[name].averages(UNSEEN)[what] for run in seeds]
            assert row.averages[what] == pytest.approx((mean(values), stdev(values)))
    assert aggregate(seeds).unseen == ()


def test_aggregate_keeps_what_differs_between_runs(seeds):
    ties = replace(seeds[1].candidates["ties"], note="scale 0.3 chosen on validation")
    ties = replace(ties, samples=ties.samples | {"dtd": 799})
    seeds[1] = replace(
        seeds[1], candidates={**seeds[1].candidates, "ties": ties}, versions={"torch": "2.7.0"}
    )
    total = aggregate(seeds)
    assert total.candidates["ties"].note == (
        "scale 0.2 chosen on validation; scale 0.3 chosen on validation"
    )
    assert total.candidates["ties"].samples["dtd"] == (799, 800)
    assert total.versions == {"torch": "2.6.0, 2.7.0", "cpus": "2"}


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "one or more"),
        ([collect(candidate("ties", []))] * 2, "own seed"),
        (
            [collect(candidate("ties", [])), collect(candidate("dare", []), seed=1)],
            r"differ in candidates \['dare', 'ties'\]",
        ),
        (
            [collect(candidate("ties", [])), collect(candidate("ties", [], TASKS[1:]), seed=1)],
            r"differ in tasks \['sun397'\]",
        ),
        (
            [
                collect(candidate("ties", []), unseen=UNSEEN),
                collect(candidate("ties", []), unseen=("dtd", "mnist"), seed=1),
            ],
            r"differ in unseen \['cars', 'mnist'\]: aggregate runs of the same unseen",
        ),
        (
            [
                collect(candidate("ties", [])),
                collect(candidate("ties", []), corruption="motion_blur 3", seed=1),
            ],
            r"different corruptions, none \(seed 0\), motion_blur 3 \(seed 1\): aggregate",
        ),
    ],
)
def test_aggregate_refuses_runs_that_do_not_compare(runs, message):
    with pytest.raises(InputError, match=message):
        aggregate(runs)


def test_differences_are_taken_run_by_run(seeds):
    seeds[2] = replace(
        seeds[2],
        candidates=seeds[2].candidates
        | {"ties": candidate("ties", [0.9, 0.6], note="scale 0.2 chosen on validation")},
    )
    total = aggregate(seeds, "average")
    runs = [run.candidates for run in seeds]
    expected = [run["ties"].average - run["average"].average for run in runs]
    rows = {name: row.differences for name, row in total.candidates.items()}
    assert rows["ties"]["average"].spread == pytest.approx((mean(expected), stdev(expected)))
    # What all rows of a run share, here a shift of one task, is in the spread of none.
    assert total.candidates["base"].average.std > 0.002
    assert rows["base"]["average"].spread.std == pytest.approx(0, abs=1e-12)
    assert rows["average"] == aggregate(seeds).candidates["ties"].differences == {}


def test_a_single_run_has_no_spread(results):
    total = aggregate([results], "average")
    ties = total.candidates["ties"]
    assert ties.average == (results.candidates["ties"].average, None)
    assert ties.differences["average"].spread.std is None


def test_differences_are_from_a_candidate(seeds):
    with pytest.raises(InputError, match=r"against='tie' is not a candidate: give one of \['base'"):
        aggregate(seeds, "tie")


def test_versions_name_software_and_machine():
    found = versions(device="cuda:0")
    assert found["device"] == "cuda:0"
    assert {"python", "torch", "lightning", "lightning_merge", "cpus"} <= set(found)
    assert all(isinstance(value, str) for value in found.values())


def test_reading_results_loads_no_drawing_and_no_lightning():
    code = (
        "import sys, lightning_merge.evaluation as e; e.versions(); "
        "sys.exit(any(name in sys.modules for name in ('lightning', 'matplotlib', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


COSTS = {"peak_memory": 3 * 2**20, "extra_parameters": 1000, "inference_cost": 2.5}


def test_costs_are_written_where_they_are_known(tmp_path):
    run = collect(candidate("ties", []), candidate("emr", [], **COSTS))
    path = run.to_json(tmp_path / "results.json")
    content = json.loads(path.read_text())["candidates"]
    assert not set(COSTS) & set(content["ties"])
    assert {key: content["emr"][key] for key in COSTS} == COSTS
    assert Results.from_json(path) == run


def test_memory_of_nothing_is_not_unknown(tmp_path):
    run = collect(candidate("ties", [], peak_memory=0))
    assert Results.from_json(run.to_json(tmp_path / "results.json")) == run


def test_costs_over_seeds():
    runs = [
        collect(candidate("emr", [], **{**COSTS, "peak_memory": peak}), candidate("ties", [],
                peak_memory=peak if seed else None), seed=seed)
        for seed, peak in enumerate([100, 300])
    ]  # fmt: skip
    total = aggregate(runs).candidates
    assert total["emr"].peak_memory == pytest.approx((200, stdev([100, 300])))
    assert (total["emr"].extra_parameters, total["emr"].inference_cost) == (1000, 2.5)
    assert total["ties"].peak_memory is None
    assert (total["ties"].extra_parameters, total["ties"].inference_cost) == (0, 1.0)
