"""The grid from its words to its tables, over a suite of two tiny tasks."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny_zoo import TASKS, model_of

from lightning_merge.cli import benchmark as command
from lightning_merge.cli.benchmark import benchmark
from lightning_merge.cli.main import main
from lightning_merge.core.errors import InputError
from lightning_merge.evaluation.correctness import Correctness
from lightning_merge.evaluation.grid_tables import table
from lightning_merge.evaluation.page import Run
from lightning_merge.evaluation.results import CandidateResult, Results
from lightning_merge.runs import cells
from lightning_merge.runs.cells import Work, run_here, run_on_cluster, why
from lightning_merge.runs.grid import read_group
from lightning_merge.runs.suite import Suite, laid

CLAIMS = Path(__file__).resolve().parents[2] / "configs" / "claims"


@pytest.fixture
def suite(tmp_path, monkeypatch, files, root):
    """A folder with the configs of a suite, as options of the grid."""
    folder = tmp_path / "configs" / "tiny"
    folder.mkdir(parents=True)
    data = {"tasks": list(TASKS), "unlabelled_inputs": 8}
    trainer = {"accelerator": "cpu", "devices": 1, "enable_model_summary": False, "max_epochs": 2}
    for name, module in {"sml": "StatsMerging", "adamerging": "AdaMerging"}.items():
        config = {"model": model_of(files, module), "data": data, "trainer": trainer}
        (folder / f"{name}.yaml").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    return {"folder": "configs/tiny", "options": {"data.root": str(root)}}


@pytest.fixture
def grid(suite, tmp_path):
    """Write the config of a grid; return its path."""

    def make(**options):
        path = tmp_path / "benchmark.yaml"
        path.write_text(yaml.safe_dump({"suites": {"tiny": suite}, "folder": "grid", **options}))
        return path

    return make


@pytest.fixture
def here(monkeypatch):
    """Run cells in this process, which has imported everything."""

    def run_here(todo, jobs):
        for work in todo:
            with open(work.log, "w") as log, redirect_stdout(log), redirect_stderr(log):
                code = main([*work.arguments])
            yield work, why(code, work.log)

    monkeypatch.setattr(command, "run_here", run_here)


def lines(folder="grid"):
    with Path(folder, "results.csv").open() as file:
        return list(csv.DictReader(file))


METHODS = {
    "task_arithmetic": {"method": {"class_path": "TaskArithmetic"}, "grid": {"scale": [0.1, 0.3]}},
    "ties": {"method": {"class_path": "Ties"}},
}


def test_methods_transforms_rows_and_seeds_become_one_table(run, grid, here):
    """A row that cannot be merged stands below the table, and the others go on."""
    bad = {"method": {"class_path": "Fisher", "init_args": {"x": 1}}}
    path = grid(
        methods={"task_arithmetic": METHODS["task_arithmetic"], "bad": bad},
        transforms={"lwptv": [{"class_path": "LwPTV"}]},
        rows={"ada": {"over": "adamerging"}},
        seeds=[0, 1],
        against="task_arithmetic",
        jobs=2,
    )
    found = run("benchmark", "--config", path)
    assert found.code == 0, found.err
    table = Path("grid/results.md").read_text()
    rows = [line.split("|")[1].strip(" *") for line in table.splitlines() if line.startswith("| ")]
    whole = ["ada", "task_arithmetic", "task_arithmetic_lwptv"]
    assert [row for row in rows if row in whole] == whole
    assert {"base", "individual"} <= set(rows)
    assert "above task_arithmetic | p |" in table
    log = Path("grid/tiny/task_arithmetic_lwptv-seed1/run.log").read_text()
    assert "base: measured by an earlier run" in log
    assert "- bad, seed 1, failed: " in table
    written = lines()
    assert {line["row"] for line in written if not line["failed"]} == {"base", "individual", *whole}
    assert {(line["row"], line["seed"]) for line in written if line["failed"]} == {
        (row, seed) for row in ("bad", "bad_lwptv") for seed in "01"
    }
    assert len(written) == 2 * (5 * len(TASKS) + 2)
    for line in written:
        if not line["failed"] and line["reference"] != "True":
            right = Correctness.read(Path(line["correct"]).parent).right[line["row"]]
            mean = right[line["task"]].double().mean()
            assert float(mean) == pytest.approx(float(line["accuracy"]), abs=1e-9)
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    stored = parquet.read_table("grid/results.parquet").to_pylist()
    assert [str(row["accuracy"] or "") for row in stored] == [r["accuracy"] for r in written]


def test_a_grid_that_was_killed_goes_on_to_the_same_table(run, grid, request):
    path = grid(methods=METHODS, seeds=[0])
    command = [sys.executable, "-m", "lightning_merge", "benchmark", "--config", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    done = Path("grid/tiny/task_arithmetic-seed0/results.json")
    for _ in range(1200):
        if done.exists():
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = done.stat().st_mtime_ns
    assert not Path("grid/results.md").exists()
    assert run("benchmark", "--config", path).code == 0
    assert done.stat().st_mtime_ns == before
    table, numbers = Path("grid/results.md").read_text(), lines()
    shutil.move("grid", "first")
    request.getfixturevalue("here")
    assert run("benchmark", "--config", path).code == 0
    same = [
        {k: v for k, v in line.items() if k not in ("seconds", "peak_memory")} for line in lines()
    ]
    assert same == [
        {k: v for k, v in line.items() if k not in ("seconds", "peak_memory")} for line in numbers
    ]
    assert table.count("| ties |") == 1


def test_a_cell_left_running_is_waited_for(tmp_path, monkeypatch):
    """Its lock is held by the process itself, not by the one that was killed."""
    monkeypatch.chdir(tmp_path)
    code = "import time, pathlib; time.sleep(2); pathlib.Path('ended').touch()"
    script = (
        "import subprocess, sys, os\n"
        "from lightning_merge.core.checkpoints.files import locked\n"
        "with locked('cell') as lock:\n"
        f"    subprocess.Popen([sys.executable, '-c', {code!r}], pass_fds=(lock,))\n"
        "    os._exit(9)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": root}, check=False
    )
    assert not Path("ended").exists()
    with pytest.warns(match="is being made by another process"):
        assert "unknown command" in cells.run(Work("cell", "cell.log", ("sort",)))
    assert Path("ended").exists()


def test_cells_run_on_a_cluster_that_loses_a_worker(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    todo = [
        Work(str(tmp_path / name), str(tmp_path / f"{name}.log"), words)
        for name, words in {
            "c": ("sort",),
            "a": ("list",),
            "b": ("list", "--what", "tasks"),
        }.items()
    ]
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options, silence_logs=50) as cluster:
        found = run_on_cluster(todo, cluster.scheduler_address)
        work, reason = next(found)
        with distributed.Client(cluster.scheduler_address) as client:
            at_work = [address for address, cells in client.processing().items() if cells]
        assert at_work
        [victim] = (w for w in cluster.workers.values() if w.worker_address == at_work[0])
        os.kill(victim.pid, signal.SIGKILL)
        ended = {work.folder: reason, **{w.folder: r for w, r in found}}
    assert {Path(folder).name: bool(reason) for folder, reason in ended.items()} == {
        "a": False, "b": False, "c": True,
    }  # fmt: skip
    assert "TREC" in (tmp_path / "b.log").read_text()


def test_logs_tell_why_and_others_go_on(tmp_path):
    words = {"bad": ("sort",), "good": ("list", "--what", "transforms")}
    todo = [Work(str(tmp_path / n), str(tmp_path / f"{n}.log"), w) for n, w in words.items()]
    found = {Path(work.folder).name: reason for work, reason in run_here(todo, 2)}
    assert found["good"] == ""
    assert "sort" in found["bad"]
    assert "LwPTV" in (tmp_path / "good.log").read_text()


@pytest.mark.parametrize("group", sorted(CLAIMS.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_claims_are_groups(group, suite):
    """Every one is a row over the suite, and none of them twice."""
    found = read_group(group)
    rows = [row for variant in found for row in variant.rows]
    assert rows
    assert len(set(rows)) == len(rows)
    for variant in found:
        if variant.over in (None, "adamerging"):
            overlay = variant.overlay(Suite(**suite))
            assert overlay["model"]["init_args"]["name"] in (*rows, "start")


def test_longer_rows_get_epochs_and_steps_in_proportion(tmp_path, suite):
    whole = json.loads((tmp_path / "configs/tiny/sml.yaml").read_text())
    over = {"sml": {"model": {"init_args": {"step_size": 3}}, "trainer": {"max_epochs": 4}}}
    [plain, twice, other] = [
        variant.overlay(Suite(**suite, over=over))
        for variant in read_group_of(
            tmp_path, {"a": {}, "b": {"longer": 2}, "c": {"over": "adamerging"}}
        )
    ]
    assert "step_size" not in json.dumps(whole)
    assert (plain["trainer"]["max_epochs"], plain["model"]["init_args"]["step_size"]) == (4, 3)
    assert (twice["trainer"]["max_epochs"], twice["model"]["init_args"]["step_size"]) == (8, 6)
    assert "step_size" not in json.dumps(other)


def read_group_of(folder, variants):
    (folder / "group.yaml").write_text(yaml.safe_dump({"variants": variants}))
    return read_group(folder / "group.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "rows, methods and groups are empty"),
        ({"rows": {"a": {}}, "seeds": [1, 1]}, r"seeds=\[1, 1\]: give one or more"),
        ({"rows": {"a": {}}, "jobs": 0}, "jobs=0"),
        ({"rows": {"a": {}}, "against": "b"}, "against='b' is no row"),
        ({"rows": {"ties": {}}, "methods": METHODS}, "several variants have the name ties"),
        ({"methods": {"ties": {"class_path": "Ties"}}}, "give method"),
        ({"groups": ["no.yaml"]}, "groups: no.yaml does not exist"),
        ({"rows": {"a": {"over": "no"}}}, r"configs/tiny/no.yaml does not exist"),
        ({"rows": {"a": {}}, "own_experts": True}, "has no experts of one recipe"),
        ({"suites": {"a": {}}, "rows": {"a": {}}}, "suites.a: has no folder; give folder"),
        ({"suites": {"a": {"folder": "x", "epochs": 3}}, "rows": {"a": {}}}, "option 'epochs'"),
        ({"rows": {"a": {}}, "cluster": "tcp://127.0.0.1:9"}, "no scheduler answers there"),
    ],
)
def test_bad_input_is_one_error_before_anything_runs(suite, monkeypatch, options, message):
    monkeypatch.setattr(cells, "run", lambda work: pytest.fail("it has begun"))
    if "cluster" in options:
        pytest.importorskip("distributed")
    with pytest.raises(InputError, match=message):
        benchmark(**{"suites": {"tiny": suite}, **options})


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # of the copy
def test_finished_cells_are_measured_on_corrupted_images(run, grid, here):
    """As configs/claims/stats_merging/robustness.yaml says: a copy, and nothing learned again."""
    path = grid(rows={"ada": {"over": "adamerging"}}, seeds=[0], folder="clean")
    assert run("benchmark", "--config", path).code == 0
    shutil.copytree("clean", "noise")
    options = {"data.corruption": {"name": "gaussian_sigma", "severity": 200}, "overwrite": True}
    more = ["--folder", "noise", "--options", json.dumps(options)]
    assert run("benchmark", "--config", path, *more).code == 0
    assert "Gaussian noise of standard deviation 200" in Path("noise/results.md").read_text()
    log = Path("noise/tiny/ada-seed0.log").read_text()
    assert "going on from noise/tiny/ada-seed0/checkpoints/last.ckpt" in log
    clean, noise = (
        [line["accuracy"] for line in lines(folder) if line["row"] == "ada"]
        for folder in ("clean", "noise")
    )
    assert clean != noise


def test_a_config_is_laid_over_another_mapping_by_mapping():
    below = {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2]}
    assert laid(below, {"a": {"c": {"f": 3}}, "e": [4]}) == {
        "a": {"b": 1, "c": {"d": 2, "f": 3}}, "e": [4],
    }  # fmt: skip


def test_steps_are_longer_where_epochs_do_not_end_the_training(tmp_path, suite):
    over = {"sml": {"trainer": {"max_epochs": -1, "max_steps": 50}}}
    [half] = read_group_of(tmp_path, {"a": {"longer": 0.5}})
    assert half.overlay(Suite(**suite, over=over))["trainer"]["max_steps"] == 25
    assert half.overlay(Suite(**suite))["trainer"]["max_epochs"] == 1


def test_rows_of_other_tasks_or_experts_have_tables_of_their_own(run, grid, here):
    rows = {"ada": {"over": "adamerging"}, "noisy": {"over": "adamerging"}}
    rows["noisy"]["data"] = {"corruption": {"name": "contrast", "severity": 1}}
    assert run("benchmark", "--config", grid(rows=rows, seeds=[0])).code == 0
    clean, noisy = Path("grid/results.md").read_text().split("| candidate")[1:]
    assert "| ada |" in clean
    assert "| noisy |" in noisy
    assert "are corrupted" in noisy
    assert "are corrupted" not in clean
    assert len([line for line in lines() if line["row"] == "base"]) == 2 * len(TASKS)


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_rows_of_several_runs_are_those_of_one(seeds):
    def result(name, seed):
        row = CandidateResult(name, {"a": 0.5, "b": 0.25 * seed}, {"a": 4, "b": 4}, 1.0)
        rows = {"base": replace(row, name="base", bound=True), name: row}
        return Run(name, Results(("a", "b"), rows, seed, {}, notes=(f"of {name}",)))

    found = {name: [result(name, seed) for seed in seeds] for name in ("one", "two")}
    made = table(found, "benchmark")
    assert [row.split("|")[1].strip() for row in made.splitlines() if row.startswith("| ")] == [
        "candidate", ":--", "*base*", "one", "two", "samples",
    ]  # fmt: skip
    assert "- of one\n- of two" in made
    assert "`benchmark`" in made
