"""The run folder: what a run leaves, how it resumes, and that nothing chosen saw test images."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_zoo import TASKS

from lightning_merge.core.checkpoint import open_checkpoint
from lightning_merge.modules import StatsMerging

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


def stop_in_epoch_7(how):
    """Let StatsMerging stop in the middle of an epoch; return how it was before."""
    step = StatsMerging.training_step

    def training_step(module, batch, batch_idx):
        if module.current_epoch == 7 and batch_idx:
            how()
        return step(module, batch, batch_idx)

    StatsMerging.training_step = training_step
    return step


def kill(run, path):
    """Run in a process of its own that gets SIGKILL."""
    script = (
        "import os, signal, sys; from lightning_merge.cli.main import main; import test_run; "
        "test_run.stop_in_epoch_7(lambda: os.kill(os.getpid(), signal.SIGKILL)); "
        "main(['fit', '--config', sys.argv[1]])"
    )
    search = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env={**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def interrupt(run, path):
    """Press Ctrl-C."""

    def press():
        raise KeyboardInterrupt

    step = stop_in_epoch_7(press)
    try:
        result = run("fit", "--config", path)
    finally:
        StatsMerging.training_step = step
    assert result.code not in (0, 2)
    assert "Traceback" not in result.err


@pytest.mark.parametrize("stop", [kill, interrupt])
def test_a_stopped_run_goes_on_as_if_it_had_not(run, config, tmp_path, caplog, stop):
    """Stop it after a checkpoint, start it again, compare with an unbroken run."""
    options = {
        "trainer__max_epochs": 10,
        "model__init_args__step_size": 4,
        "data__batch_size": 4,
    }
    whole = tmp_path / "whole"
    unbroken = config(**options, trainer__default_root_dir=str(whole))
    assert run("fit", "--config", unbroken).code == 0
    path, folder = config(**options), tmp_path / "run"
    stop(run, path)
    assert not (folder / "coefficients.safetensors").exists()
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)["epoch"] == 6
    caplog.clear()
    assert run("fit", "--config", path).code == 0
    assert "going on from" in caplog.text
    assert torch.equal(learned(folder), learned(whole))
    epochs = {int(row["epoch"]) for row in rows(folder / "metrics.csv")}
    assert epochs >= set(range(7, 10))
    if stop is interrupt:  # a kill may cost the rows that were not written yet
        assert epochs == set(range(10))
