"""Which of base, heads and experts `fit` makes, and which it leaves alone."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from tiny_zoo import CLASSES, ENCODER, TASKS, TRAINER, picture

from lightning_merge.core.checkpoints.checkpoint import file_hash, open_checkpoint, save_checkpoint
from lightning_merge.core.errors import InputError, InputWarning
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.data.dataset import TaskInputs
from lightning_merge.models.head_files import load_heads
from lightning_merge.models.mini_vit import MiniViT
from lightning_merge.modules import make_heads
from lightning_merge.modules.zoo import TextTower, Zoo
from lightning_merge.runs import heads
from lightning_merge.runs.heads import ZooHeads


@pytest.fixture
def recipe(tmp_path):
    """Write the config of an expert; returns it and a function that changes it."""
    path = tmp_path / "expert.yaml"

    def write(learning_rate=0.001):
        config = {
            "model": {
                "class_path": "lightning_merge.modules.FineTune",
                "init_args": {
                    "encoder": {"class_path": "lightning_merge.models.MiniViT"},
                    "output": "set by the stage",
                    "learning_rate": learning_rate,
                },
            },
            "data": {"fit_on": "train", "batch_size": 20},
            "trainer": {**TRAINER, "max_epochs": 1},
        }
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def fit(run, config, own_files, own_root, recipe):
    """Run the tiny pipeline, making what is missing; report what was (re)made."""
    recipe()

    def call(**changes):
        files = {task: Path(own_files.expert[task]) for task in TASKS}
        files |= {"heads": Path(own_files.heads), "base": Path(own_files.base)}
        files |= {"multi_task": own_files.folder / "multi_task.safetensors"}
        before = {n: f.stat().st_mtime_ns if f.exists() else None for n, f in files.items()}
        changes = {
            "model__init_args__zoo__expert_recipe": str(recipe_path),
            "trainer__max_epochs": 1,
            **changes,
        }
        path = config(own_files, own_root, **changes)
        result = run("fit", "--config", path, "--overwrite", "true")
        assert result.code == 0, result.err
        after = {n: f.stat().st_mtime_ns if f.exists() else None for n, f in files.items()}
        return {name for name in files if after[name] != before[name]}

    recipe_path = recipe()
    return call


def test_a_users_own_files_are_used_untouched(fit):
    assert fit() == set()


def test_what_is_missing_is_made_once(fit, own_files):
    os.remove(own_files.expert["shapes"])
    os.remove(own_files.heads)
    assert fit() == {"shapes", "heads"}
    made = open_checkpoint(own_files.expert["shapes"])
    assert "fingerprint" in made.metadata
    assert set(made) == set(open_checkpoint(own_files.base))
    assert fit() == set()


def test_what_was_made_is_made_again_when_its_inputs_change(fit, own_files, own_root, recipe):
    for task in TASKS:
        os.remove(own_files.expert[task])
    os.remove(own_files.heads)
    assert fit() == {*TASKS, "heads"}
    recipe(learning_rate=0.002)
    assert fit() == set(TASKS)
    generator = __import__("numpy").random.default_rng(99)
    picture("reds", 0, generator).save(own_root / "reds" / "train" / "dark" / "new.png")
    shapes = file_hash(own_files.expert["shapes"])
    assert fit() == {"reds", "heads"}  # the file of heads, with the head of shapes as it was
    assert file_hash(own_files.expert["shapes"]) == shapes


def test_heads_experts_and_the_merge_share_decoded_images(fit, own_files, tmp_path, monkeypatch):
    def make_all():
        for file in (*own_files.expert.values(), own_files.heads):
            os.remove(file)
        assert fit() == {*TASKS, "heads"}
        return [file_hash(file) for file in (*own_files.expert.values(), own_files.heads)]

    decoded, original = [], TaskInputs._decode
    monkeypatch.setattr(TaskInputs, "_decode", lambda *a: decoded.append(a) or original(*a))
    made, count = make_all(), len(decoded)
    assert count
    assert [*tmp_path.rglob(".images")] == [tmp_path / ".images"]  # beside the run folder
    assert make_all() == made
    assert len(decoded) == count


def test_experts_have_the_seed_that_the_zoo_names(fit, own_files):
    """The recipe's own is 0; another seed makes other experts, the same one the same again."""

    def experts(seed):
        for task in TASKS:
            os.remove(own_files.expert[task])
        assert fit(model__init_args__zoo__expert_seed=seed) == set(TASKS)
        return {task: dict(open_checkpoint(own_files.expert[task])) for task in TASKS}

    def equal(one, other):
        return all(torch.equal(one[t][n], other[t][n]) for t in TASKS for n in one[t])

    own, zero, five = (experts(seed) for seed in (None, 0, 5))
    assert equal(own, zero)
    assert not equal(own, five)
    assert fit(model__init_args__zoo__expert_seed=5) == set()
    assert fit(model__init_args__zoo__expert_seed=6) == set(TASKS)


def test_heads_are_kept_task_by_task(fit, own_files, monkeypatch):
    """A run that is stopped while it makes heads goes on after the last one."""
    os.remove(own_files.heads)
    make, made = make_heads.class_mean_head, []

    def stop_at_the_second(*given, **options):
        if made:
            raise KeyboardInterrupt
        made.append(options["classes"])
        return make(*given, **options)

    monkeypatch.setattr(make_heads, "class_mean_head", stop_at_the_second)
    with pytest.raises(AssertionError, match="interrupted"):
        fit()
    assert list(load_heads(own_files.heads)) == ["reds"]
    seen = []
    monkeypatch.setattr(
        make_heads, "class_mean_head", lambda *g, **o: seen.append(o["classes"]) or make(*g, **o)
    )
    assert fit() == {"heads"}
    assert [list(classes) for classes in seen] == [CLASSES["shapes"]]


def test_heads_that_two_runs_make_at_once_are_all_kept(encoder, zoo, own_files, root, monkeypatch):
    """The second run waits, and finds those of the first."""
    os.remove(own_files.heads)
    zoo = Zoo(own_files.base, own_files.experts, own_files.heads)
    make, begun, made = heads.make_heads, threading.Event(), []

    def slowly(zoo, encoder, data, tasks):
        made.append(list(tasks))
        begun.set()
        time.sleep(0.3)  # the other run would have read the file by now
        yield from make(zoo, encoder, data, tasks)

    def fill(*tasks):
        data = MergeDataModule(str(root), tasks=list(tasks))
        data.preprocess = encoder.preprocess
        data.load()
        inputs = {"base": "a", **{task: "b" for task in tasks}}
        ZooHeads(zoo, tasks).make(MiniViT(**ENCODER), data, inputs)

    monkeypatch.setattr(heads, "make_heads", slowly)
    first = threading.Thread(target=fill, args=("reds",))
    first.start()
    assert begun.wait(60)
    with pytest.warns(InputWarning, match="is being made by another process"):
        fill("reds", "shapes")
    first.join()
    assert made == [["reds"], ["shapes"]]
    assert set(load_heads(own_files.heads)) == set(TASKS)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("make_heads", "linear_probe", ["linear_probe", "class_means 20.0"]),
        ("head_scale", 10.0, ["class_means 10.0", "class_means 20.0"]),
    ],
)
def test_heads_of_another_kind_are_not_overwritten(
    fit, run, config, own_files, own_root, name, value, words
):
    """Two runs that name one file; the experts of the first were trained with its heads."""
    os.remove(own_files.heads)
    fit()
    before = Path(own_files.heads).read_bytes()
    other = {f"model__init_args__zoo__{name}": value, "trainer__max_epochs": 1}
    result = run("fit", "--config", config(own_files, own_root, **other), "--overwrite", "true")
    assert result.code == 2
    for word in [*words, "zoo.heads", own_files.heads, "another file"]:
        assert word in result.err
    assert Path(own_files.heads).read_bytes() == before
    os.remove(own_files.heads)
    assert fit(**other) == {"heads"}


def test_an_expert_of_another_architecture_is_found_before_heads_are_made(
    run, config, own_files, own_root
):
    os.remove(own_files.heads)
    other = MiniViT(**{**ENCODER, "depth": 2})
    save_checkpoint(other.backbone.state_dict(), own_files.expert["shapes"])
    result = run("fit", "--config", config(own_files, own_root))
    assert result.code == 2
    assert "expert of shapes" in result.err
    assert "another architecture" in result.err
    assert not Path(own_files.heads).exists()


def test_heads_of_other_tasks_are_kept(fit, own_files):
    os.remove(own_files.heads)
    fit()
    metadata = open_checkpoint(own_files.heads).metadata
    assert {f"fingerprint/{task}" for task in TASKS} <= set(metadata)


def test_a_base_is_made_by_its_recipe(fit, own_files, recipe, own_root, tmp_path):
    os.remove(own_files.base)
    config = yaml.safe_load(recipe().read_text())
    config["data"] |= {"root": str(own_root), "tasks": list(TASKS)}
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(config))
    assert fit(model__init_args__zoo__base_recipe=str(path)) == {"base"}
    assert fit(model__init_args__zoo__base_recipe=str(path)) == set()
    generator = __import__("numpy").random.default_rng(99)
    picture("reds", 0, generator).save(own_root / "reds" / "train" / "dark" / "new.png")
    assert fit(model__init_args__zoo__base_recipe=str(path)) == {"base"}
    own_root.rename(tmp_path / "moved")  # nothing to make it of again: it stays
    moved = {"data__root": str(tmp_path / "moved")}
    assert fit(model__init_args__zoo__base_recipe=str(path), **moved) == set()
    assert ENCODER["width"] in next(iter(open_checkpoint(own_files.base).values())).shape


@pytest.fixture
def together(own_files, recipe):
    """Options of a multi-task network that the expert's recipe makes."""
    place = "model__init_args__zoo__multi_task"
    return {
        place: str(own_files.folder / "multi_task.safetensors"),
        f"{place}_recipe": str(recipe()),
    }


def test_a_multi_task_network_is_made_on_demand_and_shown_as_a_bound(
    fit, together, own_files, own_root, tmp_path
):
    assert fit(**together) == {"multi_task"}
    made = open_checkpoint(own_files.folder / "multi_task.safetensors")
    assert json.loads(made.metadata["tasks"]) == list(TASKS)
    assert made.metadata["heads"] == file_hash(own_files.heads)
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["candidates"]
    assert [*rows][:3] == ["base", "individual", "multi_task"]
    assert rows["multi_task"]["bound"]
    assert fit(**together) == set()
    generator = __import__("numpy").random.default_rng(99)
    picture("reds", 0, generator).save(own_root / "reds" / "train" / "dark" / "new.png")
    assert fit(**together) == {"multi_task"}


def test_unseen_tasks_take_no_part_in_a_multi_task_network(fit, together, own_files, own_root):
    shutil.copytree(own_root / "reds", own_root / "other")
    shutil.copy(own_files.expert["reds"], own_files.folder / "other.safetensors")
    os.remove(own_files.heads)
    options = {**together, "data__tasks": [*TASKS, "other"], "data__unseen": ["other"]}
    assert fit(**options) == {"multi_task", "heads"}
    made = open_checkpoint(own_files.folder / "multi_task.safetensors")
    assert json.loads(made.metadata["tasks"]) == list(TASKS)
    assert set(json.loads(made.metadata["images"])) == set(TASKS)
    generator = __import__("numpy").random.default_rng(99)
    picture("reds", 0, generator).save(own_root / "other" / "train" / "dark" / "new.png")
    assert fit(**options) == {"heads"}


def test_a_multi_task_network_of_another_architecture_is_refused(
    run, config, own_files, own_root, together
):
    save_checkpoint({"weight": torch.ones(3)}, own_files.folder / "multi_task.safetensors")
    result = run("fit", "--config", config(own_files, own_root, **together))
    assert result.code == 2
    assert "multi-task network" in result.err


def test_a_missing_multi_task_network_without_a_recipe(run, config, own_files, own_root):
    place = "model__init_args__zoo__multi_task"
    result = run("fit", "--config", config(own_files, own_root, **{place: "nowhere.safetensors"}))
    assert result.code == 2
    assert "zoo.multi_task_recipe" in result.err


def test_zero_shot_heads_depend_on_names_and_the_text_tower(data, tmp_path):
    tower = tmp_path / "tower"
    tower.write_text("one")
    encoder = MiniViT(depth=1)
    zoo = Zoo("b", "{task}", "h", "zero_shot", text=TextTower(weights=str(tower)))
    inputs = dict.fromkeys(["base", *TASKS], "hash")
    data.load()
    marks = [ZooHeads(zoo, ["reds"]).made_from(encoder, data, "reds", inputs)]
    tower.write_text("other")
    marks.append(ZooHeads(zoo, ["reds"]).made_from(encoder, data, "reds", inputs))
    data.classes["reds"] = ("night", "day")
    marks.append(ZooHeads(zoo, ["reds"]).made_from(encoder, data, "reds", inputs))
    assert len(set(marks)) == 3


def test_prompts_that_are_not_installed_are_told_first(monkeypatch):
    monkeypatch.setattr("lightning_merge.data.prompts._folder", lambda: None)
    tower = TextTower(pretrained="openai", prompts="clip_benchmark")
    with pytest.raises(InputError, match=r"zoo\.text\.prompts='clip_benchmark' needs .*\[clip\]"):
        ZooHeads(Zoo("b", "{task}", "nowhere", "zero_shot", text=tower), TASKS).check()


def test_options_of_the_data_reach_the_recipe(fit, own_files, own_root):
    """A copy of a test image in train is dropped in both, or the expert's run would fail."""
    source = next((own_root / "reds" / "test" / "dark").iterdir())
    (own_root / "reds" / "train" / "dark" / "copy.png").write_bytes(source.read_bytes())
    os.remove(own_files.expert["reds"])
    assert fit(data__duplicates="drop") == {"reds"}


def test_those_that_are_there_are_checked_before_others_are_made(
    run, config, own_files, own_root, recipe
):
    os.remove(own_files.expert["reds"])
    weights = dict(open_checkpoint(own_files.expert["shapes"]))
    weights.pop(next(iter(weights)))
    save_checkpoint(weights, own_files.expert["shapes"])
    options = {"model__init_args__zoo__expert_recipe": str(recipe())}
    result = run("fit", "--config", config(own_files, own_root, **options))
    assert result.code == 2
    assert "expert of shapes" in result.err
    assert not Path(own_files.expert["reds"]).exists()


def test_a_missing_file_that_is_made_is_no_name_of_the_hub(
    run, config, own_files, own_root, tmp_path, monkeypatch
):
    """`made/heads` has the form of owner/name, and so has a base behind `./`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_merge.core.checkpoints.hub._fetched", None)
    changes = {"model__init_args__zoo__heads": "made/heads", "trainer__max_epochs": 1}
    result = run("fit", "--config", config(own_files, own_root, **changes))
    assert result.code == 0, result.err
    assert set(load_heads(tmp_path / "made" / "heads")) == set(TASKS)
    changes = {"model__init_args__zoo__base": "./nowhere/base"}
    result = run("fit", "--config", config(own_files, own_root, **changes))
    assert result.code == 2
    assert "the base is missing: nowhere/base does not exist" in result.err


@pytest.mark.parametrize("place", ["zoo.base", "zoo.experts", "zoo.multi_task"])
def test_the_option_of_a_name_that_cannot_be_had_is_named(
    run, config, own_files, own_root, tmp_path, monkeypatch, place
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    name = "me/of_{task}" if place == "zoo.experts" else "me/one"
    changes = {f"model__init_args__{place.replace('.', '__')}": name}
    result = run("fit", "--config", config(own_files, own_root, **changes))
    assert result.code == 2
    wanted = name.replace("{task}", "reds")
    assert f"error: {place}: {wanted!r} is neither a local path nor in" in result.err
