"""Renamed classes: every command that shows data to heads refuses them, or knows their rows."""

import os

import pytest
import yaml
from published import ClassificationHead, publish
from tiny_zoo import ENCODER, TASKS

from lightning_merge.core.checkpoint import open_checkpoint
from lightning_merge.models import load_heads, save_heads
from lightning_merge.modules.heads import HeadFiles

ARCHITECTURE = {"class_path": "lightning_merge.models.MiniViT", "init_args": ENCODER}


def evaluation(files, heads: HeadFiles) -> dict:
    options = {"encoder": ARCHITECTURE, "heads": heads, "weights": files.experts}
    options["weights"] = files.expert
    return {"class_path": "lightning_merge.modules.Evaluate", "init_args": options}


@pytest.fixture
def command(own_files, own_root, config, tmp_path):
    """Return the words of a command that runs the tiny zoo with heads."""

    def words(name: str) -> list[str]:
        if name == "merge":
            tasks = [w for t in TASKS for w in (f"--experts.{t}", own_files.expert[t])]
            encoder = ["--encoder", "MiniViT"]
            encoder += [w for k, v in ENCODER.items() for w in (f"--encoder.{k}", str(v))]
            data = ["--data.root", str(own_root), "--heads", own_files.heads, "--device", "cpu"]
            output = ["--output", str(tmp_path / "m.safetensors"), "--method", "Fisher"]
            return ["merge", "--base", own_files.base, *tasks, *encoder, *data, *output]
        if name == "tune":
            zoo = {"base": own_files.base, "experts": own_files.experts, "heads": own_files.heads}
            content = {
                "encoder": ARCHITECTURE,
                "zoo": zoo,
                "data": {"root": str(own_root), "tasks": list(TASKS)},
                "method": {"class_path": "TaskArithmetic"},
                "space": {"scale": {"choices": [0.3]}},
                "folder": str(tmp_path / "run"),
                "accelerator": "cpu",
            }
            (tmp_path / "tune.yaml").write_text(yaml.safe_dump(content))
            return ["tune", "--config", str(tmp_path / "tune.yaml")]
        if name == "fit":
            return ["fit", "--config", str(config(own_files, own_root))]
        changes = {"model": evaluation(own_files, own_files.heads)}
        return [name, "--config", str(config(own_files, own_root, **changes))]

    return words


@pytest.mark.parametrize("name", ["test", "validate", "predict", "fit", "merge", "tune"])
def test_a_renamed_class_is_refused_by_name(command, run, own_root, own_files, tmp_path, name):
    for split in ("train", "test"):
        place = own_root / "shapes" / split
        (place / "box").rename(place / "bowl")  # in the same place of the order
    result = run(*command(name))
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith(f"error: heads='{own_files.heads}'")
    assert "'shapes' is of other classes than the data: it has 'box', the data 'bowl'" in result.err
    assert not (tmp_path / "run" / "results.json").exists()


def test_reordered_heads_measure_as_before(run, config, own_files, own_root):
    changes = {"model": evaluation(own_files, own_files.heads)}
    before = run("test", "--config", config(own_files, own_root, **changes)).out
    heads = load_heads(own_files.heads)
    heads = {task: head.arranged(range(len(head.classes))[::-1], head.classes[::-1])
             for task, head in heads.items()}  # fmt: skip
    save_heads(heads, own_files.heads)
    assert load_heads(own_files.heads)["shapes"].classes == ("dot", "box", "bar")
    after = run("test", "--config", config(own_files, own_root, **changes)).out
    assert "test/shapes" in before
    assert after == before


def test_heads_made_here_are_made_anew_for_renamed_classes(run, config, own_files, own_root):
    os.remove(own_files.heads)
    options = [config(own_files, own_root), "--trainer.max_epochs", "1"]
    assert run("fit", "--config", *options).code == 0
    before = open_checkpoint(own_files.heads).metadata
    for split in ("train", "test"):
        place = own_root / "shapes" / split
        (place / "box").rename(place / "zebra")  # behind all others
    result = run("fit", "--config", *options, "--overwrite", "true")
    assert result.code == 0, result.err
    after = open_checkpoint(own_files.heads).metadata
    assert after["fingerprint/reds"] == before["fingerprint/reds"]
    assert after["fingerprint/shapes"] != before["fingerprint/shapes"]
    assert load_heads(own_files.heads)["shapes"].classes == ("bar", "dot", "zebra")


def test_published_heads_run_through_fit_and_its_table(run, config, own_files, own_root, tmp_path):
    """Files by task, as a pattern: measured as the same rows in a file of ours are."""
    heads = load_heads(own_files.heads)
    for task, head in heads.items():
        module = ClassificationHead(20 * head.weight.data)
        publish(module, tmp_path / "published" / f"head_{task.title()}Val.pt")
    pattern = str(tmp_path / "published" / "head_{task}.pt")
    place = {"model__init_args__zoo__heads": pattern}
    names = " is taken to have them in the data's order"
    result = run("fit", "--config", config(own_files, own_root, **place))
    assert result.code == 0, result.err
    assert result.err.count(names) == len(TASKS)
    record = (tmp_path / "run" / "run.json").read_text()
    assert "head_RedsVal.pt" in record
    assert (
        "nothing has changed since"
        in run("fit", "--config", config(own_files, own_root, **place)).out
    )
    for task in TASKS:
        (tmp_path / "published" / f"head_{task.title()}Val.pt").unlink()
    result = run("fit", "--config", config(own_files, own_root, **place))
    assert result.code == 2
    assert f"{tmp_path}/published/head_reds.pt does not exist" in result.err
