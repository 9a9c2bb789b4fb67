"""The study runner from its words to its table, on a suite of two tiny tasks."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import study
from tiny_zoo import *  # noqa: F403
from tiny_zoo import TASKS, model_of


@pytest.fixture
def suite(tmp_path, monkeypatch, files):
    """A folder with the configs of a suite, and the words that name it."""
    folder = tmp_path / "configs" / "tiny"
    folder.mkdir(parents=True)
    data = {"tasks": list(TASKS), "unlabelled_inputs": 8}
    trainer = {"accelerator": "cpu", "devices": 1, "enable_model_summary": False}
    for name, module in {"sml": "StatsMerging", "adamerging": "AdaMerging"}.items():
        config = {"model": model_of(files, module), "data": data, "trainer": trainer}
        (folder / f"{name}.yaml").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)


def rows(table):
    return [line.split("|")[1].strip(" *") for line in table.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("ablation", ["task_arithmetic_0.3", "lwptv_0.3", "random_layers"]),
        ("transductive", ["adamerging_layer", "adamerging_layer_on_test_images †"]),
    ],
)
def test_a_group_becomes_a_table(group, expected, suite, root, monkeypatch, capsys):
    words = ["--data-root", str(root), "--suite", "tiny", "--group", group, "--seeds", "0", "1"]
    words += ["--epochs", "2", "--against", expected[0]]
    monkeypatch.setattr(sys, "argv", ["study.py", *words])
    assert study.main() == 0
    table = capsys.readouterr().out
    found = rows(table)
    assert {"base", "individual", *expected} <= set(found)
    header = next(line for line in table.splitlines() if line.startswith("| candidate"))
    # Rows of several runs have intervals and paired differences, as those of one run do.
    assert f"above {expected[0]} | p |" in header
    assert ("update MiB" in header) == (group == "ablation")  # as all costs of merging
    assert "[" in next(line for line in table.splitlines() if line.startswith(f"| {expected[1]}"))
    assert not [name for name in found if name.startswith(study.START)]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # of the copy
def test_finished_runs_are_measured_on_corrupted_images(suite, root, monkeypatch, capsys, caplog):
    """As configs/claims/stats_merging/robustness.yaml says: a copy, and nothing learned again."""

    def start(*more):
        words = ["--data-root", str(root), "--suite", "tiny", "--group", "robustness"]
        given = [*words, "--seeds", "0", "--epochs", "2", *more]
        monkeypatch.setattr(sys, "argv", ["study.py", *given])
        assert study.main() == 0
        return capsys.readouterr().out

    start("--runs", "clean")
    shutil.copytree("clean", "noise")
    caplog.clear()
    options = ["--data.corruption.name", "gaussian_sigma", "--data.corruption.severity", "200"]
    table = start("--runs", "noise", "--", *options, "--overwrite", "true")
    assert "gaussian_sigma" in table
    runs = sorted(path.parent.name for path in Path("noise").glob("*/seed0"))
    learned = [name for name in runs if name != "closed_forms"]
    assert len(learned) == 4
    for name in learned:
        assert f"going on from noise/{name}/seed0/checkpoints/last.ckpt" in caplog.text


def test_groups_have_names_of_their_own():
    assert len(study.GROUPS) == len([*study.ROOT.glob("configs/claims/*/*.yaml")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--group", "lines", "merging"], "several variants make the row "),
        (["--group", "heterogeneous", "--own-experts"], "and not of distill_then_merge;"),
        (["--over", "tune", "--own-experts"], "and not of tune;"),
    ],
)
def test_what_cannot_be_one_table_is_refused(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study.py", "--data-root", "DATA", *words])
    monkeypatch.setattr(study, "run", lambda *_: pytest.fail("it has begun"))
    with pytest.raises(SystemExit):
        study.main()
    assert message in capsys.readouterr().err


def test_a_study_over_another_config_takes_its_options():
    """AdaMerging has no steps of a learning rate."""
    options = {"group": ["plug_in"], "over": "adamerging", "lwptv": False}
    for variant in study.variants(argparse.Namespace(**options)):
        assert variant.over == "adamerging"
        assert "step_size" not in variant.overlay(4)["model"]["init_args"]


def test_runs_side_by_side_have_logs_and_do_not_stop_each_other(tmp_path, capsys):
    todo = {tmp_path / "bad": ["sort"], tmp_path / "good": ["list", "--what", "transforms"]}
    assert not study.fit_all(todo, jobs=2)
    assert "LwPTV" in (tmp_path / "good.log").read_text()
    assert "sort" in (tmp_path / "bad.log").read_text()
    assert capsys.readouterr().err == f"{tmp_path / 'bad'}: failed\n"
    assert study.fit_all({tmp_path / "good": todo[tmp_path / "good"]}, jobs=2)
