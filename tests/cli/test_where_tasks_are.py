"""Tasks from several sources, from the command line through recipes to files that load again."""

import json
import os

import pytest
import yaml
from tiny_zoo import TASKS, TRAINER, write_config

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint

RECIPE = {
    "model": {
        "class_path": "lightning_merge.modules.FineTune",
        "init_args": {
            "encoder": {"class_path": "lightning_merge.models.MiniViT"},
            "output": "set by the stage",
        },
    },
    "data": {"fit_on": "train", "batch_size": 20},
    "trainer": {**TRAINER, "max_epochs": 1},
}


@pytest.fixture
def start(run, own_files, own_root, tmp_path):
    """Write and run a config whose experts, of one root each, are still to be made."""
    (tmp_path / "apart: {x}").mkdir()
    (own_root / "shapes").rename(tmp_path / "apart: {x}" / "shapes")
    for file in (*own_files.expert.values(), own_files.heads):
        os.unlink(file)
    (tmp_path / "expert.yaml").write_text(yaml.safe_dump(RECIPE))
    changes = {
        "model__init_args__zoo__expert_recipe": str(tmp_path / "expert.yaml"),
        "trainer__max_epochs": 1,
    }

    def call(*arguments, **more):
        path = write_config(tmp_path / "c.yaml", own_files, own_root, **changes, **more)
        return run("fit", "--config", path, *arguments)

    return call


def test_recipes_find_each_task_where_it_is(start, run, tmp_path, own_root, own_files):
    mapping = {"reds": "folders", "shapes": "folders"}
    roots = {"shapes": str(tmp_path / "apart: {x}")}
    for attempt in (
        start(data__source=mapping, data__roots=roots),
        start("--data.source", json.dumps(mapping), "--data.roots", json.dumps(roots)),
        run("fit", "--config", tmp_path / "run" / "config.yaml"),
    ):
        assert attempt.code == 0, attempt.err
    assert "nothing has changed" in attempt.out  # neither way of giving it is another run
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]
    assert (saved["source"], saved["roots"]) == (mapping, roots)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data.source.reds"] == "folders"
    for task in TASKS:
        assert "fingerprint" in open_checkpoint(own_files.expert[task]).metadata
    changed = start("--data.source", json.dumps({**mapping, "reds": "torchvision"}))
    assert changed.code == 2
    tested = run("test", "--config", tmp_path / "run" / "config.yaml")
    assert tested.code == 0, tested.err


def test_one_source_leaves_the_record_as_it_was(run, config, tmp_path):
    assert run("fit", "--config", config(trainer__max_epochs=1)).code == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data.source"] == "folders"
    assert not {"data.roots", "data.splits"} & {*record}


def test_a_division_of_our_own_is_marked_everywhere(run, config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lightning_merge.data.folders.ImageFolders.own_split", lambda self, task: task == "reds"
    )
    found = run("fit", "--config", config(trainer__max_epochs=1))
    assert found.code == 0, found.err
    assert "* reds: own division" in " ".join(found.out.split())
    folder = tmp_path / "run"
    assert json.loads((folder / "results.json").read_text())["own_split"] == ["reds"]
    assert json.loads((folder / "splits.json").read_text())["own_split"] == ["reds"]
    assert (folder / "results.md").read_text().startswith("| candidate | reds * | shapes |")
    assert "reds: own division" in run("test", "--config", folder / "config.yaml").out
    assert "own division" not in run("validate", "--config", folder / "config.yaml").out
