"""The tune command: what it chooses, on what, when it may go on, and what it refuses."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from forks import forked
from PIL import Image
from tiny_zoo import CLASSES, ENCODER, TASKS

from lightning_merge.cli.main import main
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.networks.batch_norm import recalibrated
from lightning_merge.methods import Average, LwPTV, MTies, TaskArithmetic, Ties
from lightning_merge.models.head_files import save_heads
from lightning_merge.models.heads import LinearHead
from lightning_merge.models.mini_resnet import MiniResNet
from lightning_merge.models.mini_vit import MiniViT
from lightning_merge.runs.merging import ZooMerger

SPACE = {"scale": {"low": 0.1, "high": 3.0, "log": True}, "density": {"choices": [0.2, 0.9]}}


@pytest.fixture
def written(tmp_path, files, root):
    """Write tune.yaml of a tiny search: written(trials=3)."""

    def make(files=files, root=root, **changes) -> Path:
        config = {
            "seed_everything": 3,
            "encoder": {"class_path": "lightning_merge.models.MiniViT", "init_args": ENCODER},
            "zoo": {"base": files.base, "experts": files.experts, "heads": files.heads},
            "data": {"root": str(root), "tasks": list(TASKS)},
            "method": {"class_path": "Ties"},
            "space": SPACE,
            "trials": 4,
            "folder": str(tmp_path / "run"),
            "accelerator": "cpu",
            **changes,
        }
        path = tmp_path / "tune.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    return make


@pytest.fixture
def tune(run, written):
    """Tune, and return the trials of trials.json."""

    def call(*options, **changes) -> list[dict]:
        path = written(**changes)
        result = run("tune", "--config", path, *options)
        assert result.code == 0, result.err
        return rows(Path(yaml.safe_load(path.read_text())["folder"]))

    return call


def rows(folder: Path) -> list[dict]:
    return json.loads((folder / "trials.json").read_text())


def numbers(found):
    """Points and accuracies, without the seconds."""
    return [(row["point"], row["score"]["accuracy"]) for row in found]


def test_the_best_trial_is_merged_and_tested_beside_the_bounds(tune, files, tmp_path):
    found = tune()
    assert len(found) == 4
    assert found[0]["point"] == {"scale": 1.0, "density": "0.2"}  # the method as given
    best = max(found, key=lambda row: row["score"]["average"])
    mean = sum(best["score"]["accuracy"].values()) / len(TASKS)
    assert best["score"]["average"] == pytest.approx(mean)
    experts = {task: open_checkpoint(files.expert[task]) for task in TASKS}
    method = Ties(density=float(best["point"]["density"]), scale=best["point"]["scale"])
    expected = method(open_checkpoint(files.base), experts)
    merged = open_checkpoint(tmp_path / "run" / "merged" / "ties_tuned.safetensors")
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    results = json.loads((tmp_path / "run" / "results.json").read_text())["candidates"]
    assert [*results] == ["base", "individual", "ties_tuned"]
    assert "of 4 trials chosen on the held-out examples" in results["ties_tuned"]["note"]
    table = (tmp_path / "run" / "trials.md").read_text().splitlines()
    averages = [float(line.split("|")[4]) for line in table[2:6]]
    assert averages == sorted(averages, reverse=True)


def test_no_test_image_takes_part_in_the_choice(tune, own_root, tmp_path):
    """All test images are replaced: the trials and the choice stay, the test score does not."""
    before = tune(root=own_root)
    accuracy = (tmp_path / "run" / "results.json").read_text()
    for number, file in enumerate(sorted(own_root.glob("*/test/*/*.png"))):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    after = tune(root=own_root, folder=str(tmp_path / "other"))
    assert numbers(before) == numbers(after)
    assert accuracy != (tmp_path / "other" / "results.json").read_text()
    chosen = [tmp_path / n / "merged" / "ties_tuned.safetensors" for n in ("run", "other")]
    assert chosen[0].read_bytes() == chosen[1].read_bytes()


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(
    tune, written, tmp_path, sampler, monkeypatch
):
    """With more trials than TPE draws at random; the kill leaves a trial half done."""
    changes = {"sampler": sampler, "trials": 13}
    expected = tune(**changes, folder=str(tmp_path / "whole"))
    path, merge, calls = written(**changes), ZooMerger.write, []

    def killed(*arguments):
        calls.append(merge(*arguments))
        if len(calls) == 12:
            os.kill(os.getpid(), 9)
        return calls[-1]

    def work(rank, port):
        monkeypatch.setattr(ZooMerger, "write", killed)
        main(["tune", "--config", str(path)])

    assert forked(1, work, tmp_path) == [None]
    first = rows(tmp_path / "run")
    assert len(first) == 11
    assert not (tmp_path / "run" / "results.json").exists()
    again = tune(**changes)
    assert again[:11] == first  # their seconds, too: they were not repeated
    assert numbers(again) == numbers(expected)


def test_a_finished_search_is_shown_and_goes_on_to_more_trials(tune, run, written, tmp_path):
    tune()
    stamp = (tmp_path / "run" / "results.json").stat().st_mtime_ns
    first = tune()
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns == stamp
    more = tune(trials=6)
    assert (more[:4], len(more)) == (first, 6)
    assert numbers(more) == numbers(tune(trials=6, folder=str(tmp_path / "whole")))
    refused = run("tune", "--config", written(trials=4))
    assert refused.code == 2
    assert "trials" in refused.err
    assert "--overwrite true" in refused.err
    assert tune("--overwrite", "true", trials=4) == first
    results = json.loads((tmp_path / "run" / "results.json").read_text())["candidates"]
    assert "of 4 trials" in results["ties_tuned"]["note"]
    refused = run("tune", "--config", written(trials=6, seed_everything=4))
    assert refused.code == 2
    other = tune("--overwrite", "true", seed_everything=4)
    assert len(other) == 4
    assert numbers(other)[1:] != numbers(first)[1:]


def test_a_space_of_few_points_is_tried_whole(tune):
    found = tune(space={"density": {"choices": [0.1, 0.2]}, "combine": ["mean", "sum"]})
    assert [(row["point"]["density"], row["point"]["combine"]) for row in found] == [
        ("0.1", "mean"), ("0.1", "sum"), ("0.2", "mean"), ("0.2", "sum")
    ]  # fmt: skip


def test_transforms_have_hyperparameters_and_may_be_chosen_themselves(tune, files, tmp_path):
    method = {
        "class_path": "TaskArithmetic",
        "init_args": {"transforms": [{"class_path": "LwPTV"}]},
    }
    space = {"LwPTV.prune_ratio": {"choices": [0.3, 0.6]}}
    tune(method=method, space=space)
    merged = open_checkpoint(tmp_path / "run" / "merged" / "taskarithmetic_tuned.safetensors")
    experts = {task: open_checkpoint(files.expert[task]) for task in TASKS}
    base = open_checkpoint(files.base)
    options = [TaskArithmetic(transforms=[LwPTV(r)])(base, experts) for r in (0.3, 0.6)]
    assert any(all(torch.equal(merged[n], o[n]) for n in o) for o in options)
    space = {"transforms": {"choices": [[], [{"class_path": "LwPTV"}]]}}
    found = tune("--overwrite", "true", method="TaskArithmetic", space=space)
    assert len(found) == 2


def test_a_method_gets_the_images_that_it_needs(tune, files, data, tmp_path):
    tune(method="MTies", space={"keep": {"choices": [0.5]}})
    encoder = MiniViT(**ENCODER)
    data.preprocess = encoder.preprocess
    expected = MTies(keep=0.5)(
        open_checkpoint(files.base),
        {task: open_checkpoint(file) for task, file in files.expert.items()},
        model=encoder.backbone,
        batches=encoder.preprocess.finish(data.unlabelled(seed=3)),
    )
    merged = open_checkpoint(tmp_path / "run" / "merged" / "mties_tuned.safetensors")
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_a_network_of_several_is_tuned_as_well(tune, tmp_path):
    space = {"outputs": {"choices": ["logits", "probabilities"]}}
    found = tune(method="lightning_merge.methods.ensemble.Ensemble", space=space)
    assert [row["point"]["outputs"] for row in found] == ["logits", "probabilities"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())["candidates"]
    assert results["ensemble_tuned"]["inference_cost"] == len(TASKS)


@pytest.mark.parametrize(
    ("batch_norm", "recalibrate"), [("auto", True), ("recalibrate", True), ("average", False)]
)
def test_statistics_of_batch_norm_are_those_of_held_out_images(
    tune, data, tmp_path, batch_norm, recalibrate
):
    options = {"image_size": 8, "channels": [4, 4, 8, 8]}
    torch.manual_seed(0)
    encoder = MiniResNet(**options)
    weights = {}
    for name in ("base", *TASKS):
        state = encoder.backbone.state_dict()
        weights[name] = {
            n: t + 0.01 * torch.rand_like(t) if t.is_floating_point() else t.clone()
            for n, t in state.items()
        }
        save_checkpoint(weights[name], tmp_path / f"{name}.safetensors")
    heads = {task: LinearHead(torch.eye(len(names), 8)) for task, names in TASKS.items()}
    save_heads(heads, tmp_path / "h.safetensors", classes=CLASSES)
    zoo = {
        "base": str(tmp_path / "base.safetensors"),
        "experts": str(tmp_path / "{task}.safetensors"),
        "heads": str(tmp_path / "h.safetensors"),
    }
    tune(
        encoder={"class_path": "lightning_merge.models.MiniResNet", "init_args": options},
        zoo=zoo,
        method="Average",
        space={"transforms": {"choices": [[]]}},
        batch_norm=batch_norm,
    )
    data.preprocess = encoder.preprocess
    merged = Average()(weights["base"], {task: weights[task] for task in TASKS})
    if recalibrate:
        images = encoder.preprocess.finish(data.unlabelled(seed=3))
        merged = recalibrated(encoder.backbone, merged, [images])
    found = open_checkpoint(tmp_path / "run" / "merged" / "average_tuned.safetensors")
    for name, tensor in merged.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    table = (tmp_path / "run" / "results.md").read_text()
    assert ("BatchNorm statistics of merged networks are those of" in table) == recalibrate


def test_points_that_do_not_go_together_are_refused_one_by_one(tune):
    space = {"keep": {"choices": [0.1, 0.5]}, "spread": {"choices": [0.05, 0.3]}}
    found = tune(method="MTies", space=space)
    assert [row["score"] is None for row in found] == [False, True, False, False]
    assert "spread=0.3" in found[1]["refused"]


FAULTS = {
    "unknown": ({"space": {"scael": {"low": 0.1, "high": 1}}}, "space.scael: Ties has no"),
    "out of bounds": ({"space": {"density": {"low": 0.1, "high": 7}}}, "density=7"),
    "choice out of bounds": ({"space": {"density": {"choices": [0.1, 7]}}}, "density=7"),
    "no such choice": ({"space": {"combine": {"choices": ["mean", "men"]}}}, "'men'"),
    "choice of another type": ({"space": {"scale": {"choices": ["much"]}}}, "'much'"),
    "a choice twice": ({"space": {"scale": {"choices": [1, 1]}}}, "once"),
    "choices and ends": ({"space": {"scale": {"low": 1, "choices": [1]}}}, "either"),
    "half a range": ({"space": {"scale": {"low": 1}}}, "low and high"),
    "upside down": ({"space": {"scale": {"low": 2, "high": 1}}}, "low=2"),
    "log of nothing": ({"space": {"scale": {"low": 0, "high": 1, "log": True}}}, "log"),
    "a word": ({"space": {"combine": {"low": 1, "high": 2}}}, "choices"),
    "a number": ({"space": {"scale": 0.1}}, "space.scale=0.1 is not a range"),
    "a word for an end": ({"space": {"scale": {"low": "a", "high": 1}}}, "low='a'"),
    "misspelt end": ({"space": {"scale": {"lo": 0.1, "high": 1}}}, "is not a range"),
    "empty": ({"space": {}}, "space is empty"),
    "no transform": ({"space": {"LwPTV.prune_ratio": {"choices": [1]}}}, "space.LwPTV.prune_ratio"),
    "no trials": ({"trials": 0}, "trials=0"),
    "one task": ({"data": {"root": "", "source": "drawn", "tasks": ["bars"]}}, "two tasks"),
    "a reference": ({"name": "individual"}, "'individual'"),
    "device": ({"accelerator": "abacus"}, "abacus"),
    "sampler": ({"sampler": "grid"}, "grid"),
    "misspelt": ({"trails": 3}, "trails"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_message_before_any_work(run, written, tmp_path, fault):
    changes, words = FAULTS[fault]
    if fault == "one task":
        from lightning_merge.data.drawn import DRAWN_TASKS

        changes["data"]["tasks"] = [next(iter(DRAWN_TASKS))]
    result = run("tune", "--config", written(**changes))
    assert result.code == 2
    assert result.err.count("error:") == 1
    assert words in result.err
    assert not (tmp_path / "run").exists()


def test_a_missing_expert_is_named(run, written, own_files, tmp_path):
    os.remove(own_files.expert["shapes"])
    result = run("tune", "--config", written(files=own_files))
    assert result.code == 2
    assert "expert of shapes" in result.err
    assert not (tmp_path / "run").exists()


def test_a_file_of_trials_that_is_none(run, written, tune, tmp_path):
    tune(trials=1)
    (tmp_path / "run" / "trials.json").write_text("[1")
    os.remove(tmp_path / "run" / "results.json")
    result = run("tune", "--config", written(trials=1))
    assert result.code == 2
    assert "trials.json" in result.err
