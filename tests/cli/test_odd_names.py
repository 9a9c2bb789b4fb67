"""Runs on folders whose names are hard to write, print or parse."""

import csv
import io
import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from tiny_zoo import write_config

from lightning_merge.core.checkpoints.files import read_text
from lightning_merge.modules.tuning import Score, Trial
from lightning_merge.runs.tune import table as trials_table

CLASSES = [b"caf\xe9", b"\x8a\xbf\x8e\x9a", b'a,"b"\nc', "café 🍎".encode(), b"[red] :cat:"]


def table(path):
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_may_have_any_name(run, config, own_root, own_files, tmp_path, name):
    wanted = os.fsdecode(name)
    for split in ("train", "test"):
        (own_root / "reds" / split / "dark").rename(own_root / "reds" / split / wanted)
    os.unlink(own_files.heads)  # they are made of these classes
    given = ("--config", config(own_files, own_root, trainer__max_epochs=1))
    for command in ("fit", "test", "predict"):
        found = run(command, *given)
        assert found.code == 0, found.err
    folder = tmp_path / "run"
    known = json.loads((folder / "splits.json").read_bytes().decode("utf-8"))["tasks"]["reds"]
    assert sorted(known["classes"]) == sorted(["bright", wanted])
    assert json.loads(read_text(folder / "run.json"))["classes of reds"] == known["classes"]
    rows = [row for row in table(folder / "predictions.csv") if row["task"] == "reds"]
    assert {row["class"] for row in rows} <= {"bright", wanted}
    files = [row["file"] for row in rows]
    order = sorted(["bright", wanted])
    assert files == [f"test/{label}/{i}.png" for label in order for i in range(7)]
    assert name in (folder / "predictions.csv").read_bytes().replace(b'""', b'"')


@pytest.mark.parametrize("name", ["[red] :cat: |x", "é 🍎, \"b\" 'c'", "a: {b}"])
def test_a_task_may_have_any_name_that_prints(run, own_root, own_files, tmp_path, name):
    (own_root / "reds").rename(own_root / name)
    os.rename(own_files.expert["reds"], own_files.experts.format(task=name))
    os.unlink(own_files.heads)

    def given(epochs):
        changes = {"data__tasks": [name, "shapes"], "trainer__max_epochs": epochs}
        return ("--config", write_config(tmp_path / "c.yaml", own_files, own_root, **changes))

    for command in ("fit", "test", "predict"):
        found = run(command, *given(1))
        assert found.code == 0, found.err
    assert f"test/{name}: " in run("test", *given(1)).out
    folder = tmp_path / "run"
    assert yaml.safe_load(read_text(folder / "config.yaml"))["data"]["tasks"] == [name, "shapes"]
    assert json.loads(read_text(folder / "results.json"))["tasks"] == [name, "shapes"]
    assert name.replace("|", "\\|") in read_text(folder / "results.md").splitlines()[0]
    assert {row["task"] for row in table(folder / "predictions.csv")} == {name, "shapes"}
    assert float(table(folder / "metrics.csv")[-1][f"test/{name}"]) >= 0


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "--config", "caf\udce9.yaml"),
        ("merge", "--experts.a", "\udc8a.pt"),
        ("report", "--runs", "[\udce9]"),
    ],
)
def test_options_that_yaml_does_not_take_are_named(run, words):
    found = run(*words)
    assert found.code == 2
    assert re.match(r"error: '.*\\udc.*' is not UTF-8; rename", found.err)


def test_a_root_need_not_be_utf8(run, config, root, tmp_path):
    place = tmp_path / os.fsdecode(b"caf\xe9")
    place.symlink_to(root)
    config = config(trainer__max_epochs=1)
    for command in ("fit", "test"):
        found = run(command, "--config", config, "--data.root", place)
        assert found.code == 0, found.err
    record = json.loads((tmp_path / "run" / "run.json").read_bytes().decode("utf-8"))
    assert record["data.root"] == str(place)


def test_bars_in_names_do_not_divide_the_table_of_trials():
    text = trials_table([Trial({"scale": 0.5}, Score(0.5, {"a|b": 0.5}, 1.0))], ["a|b"])
    rows = [re.split(r"(?<!\\)\|", line) for line in text.splitlines()[:3]]
    assert [len(row) for row in rows] == [7, 7, 7]
    assert rows[0][4].strip() == r"a\|b"


def test_a_folder_is_printed_as_it_is(run, config, tmp_path):
    folder = tmp_path / "[red] :cat:"
    found = run("fit", "--config", config(trainer__default_root_dir=str(folder)))
    assert found.code == 0, found.err
    assert f"run folder: {folder}\n" in found.out  # in one line, to be copied


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_the_commands_run_in_utf8_whatever_the_locale(tmp_path, locale):
    environment = {
        **os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "",
    }  # fmt: skip
    command = [sys.executable, "-m", "lightning_merge", "report", "--runs", "[é]"]
    found = subprocess.run(
        [*command, "--output", str(tmp_path / "t.md")], env=environment, capture_output=True
    )
    assert found.returncode == 2
    assert "runs: 'é' has no results: é does not exist".encode() in found.stderr
