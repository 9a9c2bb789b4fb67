"""The run folder: what a run leaves, how it resumes, and that nothing chosen saw test images."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from tiny_zoo import TASKS

from lightning_merge.core.checkpoint import open_checkpoint

CALLBACKS = [
    {
        "class_path": "lightning_merge.callbacks.MergeCallback",
        "init_args": {
            "name": "tuned",
            "method": {"class_path": "TaskArithmetic"},
            "grid": {"scale": [0.1, 0.5]},
        },
    },
    {"class_path": "lightning_merge.callbacks.MTiesMerge"},
    {"class_path": "lightning_merge.callbacks.LwPTVMerge"},
    {"class_path": "lightning_merge.callbacks.CoefficientMap"},
]


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def learned(folder):
    return open_checkpoint(folder / "coefficients.safetensors")["coefficients"]


def test_the_run_folder(run, config, tmp_path, caplog):
    result = run("fit", "--config", config(trainer__callbacks=CALLBACKS))
    assert result.code == 0, result.err
    names = ["base", "individual", "tuned", "m_ties", "lwptv", "sml"]
    for name in names:
        assert name in result.out
    folder = tmp_path / "run"
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == {
        "config.yaml",
        "splits.json",
        "metrics.csv",
        "run.fingerprint",
        "checkpoints/last.ckpt",
        "coefficients.safetensors",
        *(f"merged/{name}.safetensors" for name in names[2:]),
        *(f"figures/{name}.png" for name in ("coefficients", "m_ties", "lwptv")),
        "results.md",
        "results.json",
    }
    results = json.loads((folder / "results.json").read_text())
    assert list(results["candidates"]) == names
    assert results["seed"] == 3
    assert results["command"].startswith("python -m lightning_merge fit --config")
    chosen = open_checkpoint(folder / "merged" / "tuned.safetensors").metadata["hyperparameters"]
    note = results["candidates"]["tuned"]["note"]
    assert note.split()[0] in chosen

    # The same command again: nothing is trained, nothing is lost.
    before, log = learned(folder), rows(folder / "metrics.csv")
    assert [row["epoch"] for row in log] == ["0", "1", "2"]
    assert run("fit", "--config", config(trainer__callbacks=CALLBACKS)).code == 0
    assert torch.equal(learned(folder), before)
    assert rows(folder / "metrics.csv") == log
    again = json.loads((folder / "results.json").read_text())
    for name in names:
        assert again["candidates"][name]["accuracy"] == results["candidates"][name]["accuracy"]
    assert again["candidates"]["sml"]["seconds"] == results["candidates"]["sml"]["seconds"]

    # What was learned can be measured and used later, and agrees with the table.
    assert run("test", "--config", config()).code == 0
    measured = rows(folder / "metrics.csv")[-1]
    for task in TASKS:
        expected = results["candidates"]["sml"]["accuracy"][task]
        assert float(measured[f"test/{task}"]) == pytest.approx(expected)
    assert run("predict", "--config", config()).code == 0
    assert len(rows(folder / "predictions.csv")) == sum(
        results["candidates"]["sml"]["samples"].values()
    )

    # Another configuration starts anew.
    changed = config(model__init_args__prior=0.1)
    caplog.clear()
    assert run("fit", "--config", changed).code == 0
    assert "starting anew" in caplog.text
    assert not torch.equal(learned(folder), before)
    assert list(json.loads((folder / "results.json").read_text())["candidates"])[-1] == "sml"


def test_before_fit_there_is_nothing_to_test(run, config):
    result = run("test", "--config", config())
    assert result.code == 2
    assert "run fit" in result.err


def start(path):
    return subprocess.Popen(
        [sys.executable, "-m", "lightning_merge", "fit", "--config", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_stopped_run_goes_on_as_if_it_had_not(run, config, tmp_path, caplog, how):
    """Stop it after its first checkpoint, start it again, compare with an unbroken run."""
    options = {"trainer__max_epochs": 60, "model__init_args__step_size": 20}
    whole = tmp_path / "whole"
    unbroken = config(**options, trainer__default_root_dir=str(whole))
    assert run("fit", "--config", unbroken).code == 0
    path = config(**options)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    process = start(path)
    deadline = time.monotonic() + 240
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0, "it ended before it was stopped"
    assert "Traceback" not in errors
    assert not (tmp_path / "run" / "coefficients.safetensors").exists()
    reached = torch.load(checkpoint, weights_only=False)["epoch"]
    assert reached < 59
    assert run("fit", "--config", path).code == 0
    assert "going on from" in caplog.text
    assert torch.equal(learned(tmp_path / "run"), learned(whole))
    epochs = [int(row["epoch"]) for row in rows(tmp_path / "run" / "metrics.csv")]
    assert set(epochs) == set(range(60))
