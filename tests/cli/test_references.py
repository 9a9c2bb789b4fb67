"""Rows of base and experts: measured once for all runs of a folder unless they may differ."""

import json
import shutil

import pytest

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.evaluation.correctness import Correctness

KNOWN = "measured by an earlier run"
REFERENCES = ("base", "individual")


def fitted(run, path, folder, *options):
    """Run fit into a folder; return the rows of its references, and whether they were known."""
    found = run("fit", "--config", path, "--trainer.default_root_dir", folder, *options)
    assert found.code == 0, found.err
    rows = json.loads((folder / "results.json").read_text())["candidates"]
    bits = Correctness.read(folder).right
    same = [{k: v for k, v in rows[name].items() if k != "figures"} for name in REFERENCES]
    return same, [{t: b.tolist() for t, b in bits[name].items()} for name in REFERENCES]


def test_a_second_run_takes_the_rows_of_the_first(run, config, tmp_path, caplog):
    path = config()
    apart = fitted(run, path, tmp_path / "apart" / "run", "--seed_everything", "4")
    first = fitted(run, path, tmp_path / "runs" / "one")
    assert KNOWN not in caplog.text
    second = fitted(run, path, tmp_path / "runs" / "two", "--seed_everything", "4")
    assert [f"{name}: {KNOWN}" in caplog.text for name in REFERENCES] == [True, True]
    assert first == second == apart
    results = [
        json.loads((tmp_path / place / "results.json").read_text())["candidates"]["sml"]
        for place in ("runs/two", "apart/run")
    ]
    assert results[0]["accuracy"] == results[1]["accuracy"]


@pytest.mark.parametrize(
    "option",
    [
        ("--data.eval_batch_size", "3"),
        ("--data.joint_labels", "true"),
        ("--data.corruption", '{"name": "contrast", "severity": 1}'),
        ("--trainer.limit_test_batches", "1"),
        ("--trainer.callbacks", '[{"class_path": "Representations", "init_args": {"images": 30}}]'),
    ],
)
def test_rows_that_may_differ_are_measured(run, config, tmp_path, caplog, option):
    path = config()
    fitted(run, path, tmp_path / "runs" / "one")
    fitted(run, path, tmp_path / "runs" / "two", *option)
    assert KNOWN not in caplog.text


def test_rows_of_other_weights_in_the_same_file_are_measured(run, config, files, tmp_path, caplog):
    place = tmp_path / "zoo"
    place.mkdir()
    for task, file in files.expert.items():
        shutil.copy(file, place / f"{task}.safetensors")
    path, given = config(), ("--model.zoo.experts", place / "{task}.safetensors")
    fitted(run, path, tmp_path / "runs" / "one", *given)
    changed = place / f"{next(iter(files.expert))}.safetensors"
    weights = {name: tensor * 0.5 for name, tensor in open_checkpoint(changed).items()}
    save_checkpoint(weights, changed, overwrite=True)
    fitted(run, path, tmp_path / "runs" / "two", *given)
    assert KNOWN not in caplog.text


def test_a_damaged_row_is_measured_again(run, config, tmp_path, caplog):
    path = config()
    first = fitted(run, path, tmp_path / "runs" / "one")
    rows = [*(tmp_path / "runs" / ".references").glob("*")]
    assert len(rows) == len(REFERENCES)
    for row, content in zip(rows, ("{", '{"tasks": []}'), strict=True):
        (row / "results.json").write_text(content)
    assert fitted(run, path, tmp_path / "runs" / "two") == first
    assert KNOWN not in caplog.text
    assert fitted(run, path, tmp_path / "runs" / "three") == first
    assert KNOWN in caplog.text
