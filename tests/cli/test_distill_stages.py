"""Distil, then merge: teachers, their students and what is merged from them, by one config."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from tiny_zoo import ENCODER, TASKS, TRAINER

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.checkpoints.digests import file_hash
from lightning_merge.models import MiniResNet
from lightning_merge.modules import Distill

VIT = {"class_path": "lightning_merge.models.MiniViT", "init_args": ENCODER}
RESNET = {
    "class_path": "lightning_merge.models.MiniResNet",
    "init_args": {"image_size": 8, "channels": [4, 4, 8, 8]},
}


def write_recipe(path, kind, **options):
    """Write the config of one expert or student."""
    init_args = {"encoder": RESNET, "output": "set by the stage", **options}
    config = {
        "model": {"class_path": f"lightning_merge.modules.{kind}", "init_args": init_args},
        "data": {"fit_on": "train", "batch_size": 20},
        "trainer": {**TRAINER, "max_epochs": 2},
    }
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.fixture
def chain(run, config, own_files, own_root, tmp_path):
    """Run teachers, students and merge; says what was made, and gives the students' files."""
    torch.manual_seed(4)
    place = tmp_path / "students"
    base = MiniResNet(**RESNET["init_args"]).backbone.state_dict()
    save_checkpoint(base, place / "base.safetensors")
    recipe = tmp_path / "distil.yaml"
    write_recipe(recipe, "Distill", heads="set by the stage")
    teachers = {"base": own_files.base, "experts": own_files.experts, "heads": own_files.heads}
    teachers["expert_recipe"] = write_recipe(tmp_path / "expert.yaml", "FineTune")
    zoo = {
        "base": str(place / "base.safetensors"),
        "experts": str(place / "{task}.safetensors"),
        "heads": str(place / "heads.safetensors"),
        "expert_recipe": str(recipe),
        "teachers": {"encoder": VIT, "zoo": teachers},
    }
    files = {f"student {task}": place / f"{task}.safetensors" for task in TASKS}
    files |= {f"teacher {task}": Path(own_files.expert[task]) for task in TASKS}
    files |= {"heads": place / "heads.safetensors", "teacher heads": Path(own_files.heads)}

    def call(arguments=(), code=0, **changes):
        before = {n: f.stat().st_mtime_ns if f.exists() else None for n, f in files.items()}
        changes = {
            "model__init_args__encoder": RESNET, "model__init_args__zoo": zoo,
            "trainer__max_epochs": 1, **changes,
        }  # fmt: skip
        path = config(own_files, own_root, **changes)
        done = run("fit", "--config", path, "--overwrite", "true", *arguments)
        assert done.code == code, done.err
        found = {n for n, f in files.items() if f.exists() and f.stat().st_mtime_ns != before[n]}
        return SimpleNamespace(made=found, **vars(done))

    call.zoo, call.students = zoo, {task: place / f"{task}.safetensors" for task in TASKS}
    call.teacher = {task: Path(own_files.expert[task]) for task in TASKS}
    call.recipe, call.teacher_heads = recipe, Path(own_files.heads)
    return call


STUDENTS = {f"student {task}" for task in TASKS}


def test_one_config_drives_the_whole_chain(chain, tmp_path):
    os.remove(chain.teacher["shapes"])
    os.remove(chain.teacher_heads)
    done = chain()
    assert done.made == {*STUDENTS, "heads", "teacher heads", "teacher shapes"}
    base = open_checkpoint(chain.zoo["base"])
    for task, file in chain.students.items():
        student = open_checkpoint(file)
        assert set(student) == set(base)
        assert student.metadata["base"] == file_hash(chain.zoo["base"])
        assert student.metadata["teacher"] == file_hash(chain.teacher[task])
        assert student.metadata["teacher/heads"] == file_hash(chain.teacher_heads)
        assert student.metadata["heads"] == file_hash(chain.zoo["heads"])
        assert json.loads(student.metadata["tasks"]) == [task]
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["candidates"]
    assert list(rows)[:2] == ["base", "individual"]
    assert set(open_checkpoint(tmp_path / "run" / "merged" / "sml.safetensors")) == set(base)

    # What is there stays; the config that the run has written says the same as its own.
    assert chain().made == set()
    assert "nothing has changed" in chain(["--config", tmp_path / "run" / "config.yaml"]).out


TRIAL = {"trainer__fast_dev_run": True}
"""Make all that lacks; what is merged from it is not the matter."""


def test_a_student_is_made_again_when_its_teacher_changes(chain):
    assert chain(**TRIAL).made == {*STUDENTS, "heads"}
    weights = {n: t * 1.01 for n, t in open_checkpoint(chain.teacher["reds"]).items()}
    save_checkpoint(weights, chain.teacher["reds"])
    assert chain(**TRIAL).made == {"student reds"}
    os.remove(chain.teacher_heads)  # made anew they have marks of their own
    assert chain(**TRIAL).made == {*STUDENTS, "teacher heads"}
    config = yaml.safe_load(chain.recipe.read_text())
    config["model"]["init_args"]["temperature"] = 2.0
    chain.recipe.write_text(yaml.safe_dump(config))
    assert chain(**TRIAL).made == STUDENTS
    options = json.loads(open_checkpoint(chain.students["reds"]).metadata["hyperparameters"])
    assert options["temperature"] == 2.0


def test_a_chain_that_was_stopped_goes_on(chain, monkeypatch, caplog):
    assert chain(**TRIAL).made == {*STUDENTS, "heads"}
    whole = {task: file.read_bytes() for task, file in chain.students.items()}
    for file in chain.students.values():
        file.unlink()
        shutil.rmtree(file.with_suffix(""))
    step = Distill.training_step

    def training_step(module, batch, batch_idx):
        if "shapes" in batch and module.current_epoch == 1:
            raise RuntimeError("stopped")
        return step(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Distill, "training_step", training_step)
        with pytest.raises(RuntimeError, match="stopped"):
            chain(**TRIAL)
    assert chain.students["reds"].read_bytes() == whole["reds"]
    assert not chain.students["shapes"].exists()
    caplog.clear()
    assert chain(**TRIAL).made == {"student shapes"}
    assert "going on from" in caplog.text
    assert chain.students["shapes"].read_bytes() == whole["shapes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expert_recipe": None}, "the expert of reds is missing"),
        ({"expert_recipe": "nowhere.yaml"}, "nowhere.yaml"),
        ({"base": "nowhere.safetensors"}, "nowhere.safetensors does not exist"),
    ],
)
def test_teachers_that_lack_are_told_before_long_work(chain, change, message):
    os.remove(chain.teacher["reds"])
    os.remove(chain.teacher_heads)
    chain.zoo["teachers"]["zoo"] |= change
    done = chain(code=2)
    assert message in done.err
    assert done.made == set()


@pytest.mark.parametrize("name", ["experts", "heads", "base"])
def test_students_are_not_written_over_their_teachers(chain, name):
    chain.zoo[name] = chain.zoo["teachers"]["zoo"][name]
    done = chain(code=2)
    assert "other names than their teachers" in done.err
    assert done.made == set()


def test_a_teacher_of_another_architecture_than_stated_is_refused(chain):
    chain.zoo["teachers"]["encoder"] = {**VIT, "init_args": {**ENCODER, "width": 32}}
    done = chain(code=2)
    assert "zoo.teachers: base: " in done.err
    assert "another architecture" in done.err
    assert done.made == set()
