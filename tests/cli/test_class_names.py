"""Renamed classes: every command that shows data to heads refuses them, or knows their rows."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from published import ClassificationHead, publish
from tiny_zoo import CLASSES, ENCODER, TASKS

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.models import NormalizedLinearHead, load_heads, save_heads
from lightning_merge.modules.heads import HeadFiles

ARCHITECTURE = {"class_path": "lightning_merge.models.MiniViT", "init_args": ENCODER}


def evaluation(files, heads: HeadFiles) -> dict:
    options = {"encoder": ARCHITECTURE, "heads": heads, "weights": files.experts}
    options["weights"] = files.expert
    return {"class_path": "lightning_merge.modules.Evaluate", "init_args": options}


@pytest.fixture
def command(own_files, own_root, config, tmp_path):
    """Return the words of a command that runs the tiny zoo with heads."""

    def words(name: str, heads: HeadFiles = own_files.heads) -> list[str]:
        text = heads if isinstance(heads, str) else json.dumps(heads)
        if name == "merge":
            tasks = [w for t in TASKS for w in (f"--experts.{t}", own_files.expert[t])]
            encoder = ["--encoder", "MiniViT"]
            encoder += [w for k, v in ENCODER.items() for w in (f"--encoder.{k}", str(v))]
            data = ["--data.root", str(own_root), "--heads", text, "--device", "cpu"]
            output = ["--output", str(tmp_path / "m.safetensors"), "--method", "Fisher"]
            return ["merge", "--base", own_files.base, *tasks, *encoder, *data, *output]
        if name == "tune":
            zoo = {"base": own_files.base, "experts": own_files.experts, "heads": heads}
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
            words = ["fit", "--config", str(config(own_files, own_root))]
            return [*words, "--model.zoo.heads", text, "--trainer.max_epochs", "1"]
        changes = {"model": evaluation(own_files, heads)}
        return [name, "--config", str(config(own_files, own_root, **changes))]

    return words


COMMANDS = ("test", "validate", "predict", "fit", "merge", "tune")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_renamed_class_is_refused_by_name(command, run, own_root, own_files, tmp_path, name):
    for split in ("train", "test"):
        place = own_root / "shapes" / split
        (place / "box").rename(place / "bowl")  # in the same place of the order
    result = run(*command(name))
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith(f"error: heads='{own_files.heads}'")
    assert "'shapes' has other classes than the data: it has 'box', the data 'bowl'" in result.err
    assert not (tmp_path / "run" / "results.json").exists()


def rename(root, task: str, names: dict[str, str]) -> None:
    for split in ("train", "test"):
        for old, new in names.items():
            (root / task / split / old).rename(root / task / split / new)


@pytest.mark.parametrize("task", TASKS)
def test_another_data_set_with_as_many_classes_is_refused(run, command, own_root, task):
    rename(own_root, task, {name: f"other {name}" for name in CLASSES[task]})
    result = run(*command("test"))
    assert result.code == 2
    assert f"'{task}' has other classes than the data: it has " in result.err
    assert all(repr(name) in result.err for name in CLASSES[task])


@pytest.mark.parametrize("zeros", ["{}", "{:02}", "{:05}"])
def test_numbers_of_classes_are_compared_as_numbers(run, command, own_files, own_root, zeros):
    """Folders 2, 10, 11 stand in the order 10, 11, 2, and 02, 10, 11 in that of the numbers."""
    before = run(*command("test")).out
    heads = load_heads(own_files.heads)
    rows = [1, 2, 0]
    heads["shapes"] = heads["shapes"].arranged(rows, ["10", "11", "2"])
    save_heads(heads, own_files.heads)
    numbers = dict(zip(CLASSES["shapes"], (2, 10, 11), strict=True))
    rename(own_root, "shapes", {name: zeros.format(n) for name, n in numbers.items()})
    assert run(*command("test")).out == before


def files_by_task(own_files, folder, kind: str) -> HeadFiles:
    """The tiny zoo's heads, one of them published, by pattern, mapping, or as a file of ours."""
    if kind == "one file":
        return own_files.heads
    heads = load_heads(own_files.heads)
    ours = folder / "head_shapes.safetensors"
    published = str(folder / "head_RedsVal.pt")
    save_heads({"shapes": heads["shapes"]}, ours)
    publish(ClassificationHead(heads["reds"].weight.data), Path(published))
    if kind == "mapping":
        return {"reds": published, "shapes": str(ours)}
    ours.rename(folder / "head_Shapes.pt")  # what a file is, its content says
    return str(folder / "head_{task}.pt")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kind", ["mapping", "pattern"])
def test_every_command_takes_a_file_for_each_task(run, command, own_files, tmp_path, name, kind):
    heads = load_heads(own_files.heads)
    heads["reds"] = NormalizedLinearHead(heads["reds"].weight.data).named(CLASSES["reds"])
    save_heads(heads, own_files.heads)

    def made() -> dict[str, object]:
        lines = [line for line in result.out.splitlines() if not re.search(r"\d s\b|/run", line)]
        files = sorted(p for p in tmp_path.rglob("*") if p.suffix in (".csv", ".safetensors"))
        written = {p.name: open_weights(p) for p in files if p.parent.name != "own_zoo"}
        return {"out": lines, **written}

    result = run(*command(name))
    assert result.code == 0, result.err
    expected = made()
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    (tmp_path / "m.safetensors").unlink(missing_ok=True)
    result = run(*command(name, files_by_task(own_files, own_files.folder, kind)))
    assert result.code == 0, result.err
    assert "head_RedsVal.pt" in result.err  # its classes are taken to be in the data's order
    assert made() == expected


def open_weights(path: Path) -> object:
    if path.suffix == ".csv":
        return path.read_text()
    found = open_checkpoint(path)
    return {name: found[name].tolist() for name in found}


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
    names = " is assumed to have them in the data's order"
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
