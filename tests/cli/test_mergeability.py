"""The mergeability command against the Python that it stands for."""

import json

import pytest
import torch
import yaml
from tiny_zoo import ENCODER, TASKS

from lightning_merge.cli.mergeability import FILES
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.checkpoints.digests import file_fingerprint
from lightning_merge.core.networks.mergeability import mergeability
from lightning_merge.models.mini_resnet import MiniResNet
from lightning_merge.models.mini_vit import MiniViT

RESNET = {"image_size": 8, "channels": [4, 4, 4, 4]}


@pytest.fixture
def config(files, root, tmp_path):
    path = tmp_path / "mergeability.yaml"
    content = {
        "base": files.base,
        "experts": files.expert,
        "encoder": {"class_path": "MiniViT", "init_args": ENCODER},
        "data": {"root": str(root), "tasks": list(TASKS), "unlabelled_inputs": 9},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def images_for(encoder, data):
    data.unlabelled_inputs, data.preprocess = 9, encoder.preprocess
    return encoder.preprocess.finish(data.unlabelled())


@pytest.mark.parametrize("layer_inputs", ["merged", "base"])
def test_the_command_is_the_python_call(run, config, files, data, tmp_path, layer_inputs):
    folder = tmp_path / "found"
    options = ["--output", folder, "--layer_inputs", layer_inputs]
    result = run("mergeability", "--config", config, *options)
    assert result.code == 0, result.err
    encoder = MiniViT(**ENCODER)
    expected = mergeability(
        open_checkpoint(files.base),
        {task: open_checkpoint(file) for task, file in files.expert.items()},
        encoder.backbone,
        images_for(encoder, data),
        layer_inputs,
    )
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in FILES[1:])
    found = json.loads((folder / FILES[0]).read_text())
    assert found["tasks"] == list(TASKS)
    assert found["layer_inputs"] == layer_inputs
    assert sum(found["images"].values()) == 9
    assert list(found["images"]) == list(TASKS)
    assert found["files"]["expert/reds"] == file_fingerprint(files.expert["reds"])
    assert found["overall"] == pytest.approx(expected.overall)
    assert found["experts"] == pytest.approx(expected.experts)
    assert found["overall_normalized"] == pytest.approx(expected.overall_normalized)
    for key in ("pairwise", "pairwise_normalized"):
        assert found[key][0][1] == pytest.approx(float(getattr(expected, key)[0, 1]), rel=1e-5)
    assert list(found["layers"]) == list(expected.layers) == ["blocks.0.mlp.fc1"]
    for name, layer in expected.layers.items():
        compare(found["layers"][name], layer)


def compare(written, layer):
    """Compare a layer in the file with that of the Python call."""
    assert written.pop("activation") == "GELU"
    wanted = {
        **layer.all._asdict(),
        "layer_relative": layer.all.layer_relative,
        "pairwise": layer.pairwise,
        "pairwise_relative": layer.pairwise_relative,
        "pairwise_normalized": layer.pairwise_normalized,
    }
    assert set(written) == set(wanted)
    for key, value in wanted.items():
        got = torch.tensor(written[key], dtype=torch.float64)
        torch.testing.assert_close(got, value, rtol=1e-5, atol=0)


def test_tables_show_layers_pairs_and_experts(run, config, files, data):
    result = run("mergeability", "--config", config)
    assert result.code == 0, result.err
    encoder = MiniViT(**ENCODER)
    experts = {task: open_checkpoint(file) for task, file in files.expert.items()}
    base = open_checkpoint(files.base)
    found = mergeability(base, experts, encoder.backbone, images_for(encoder, data))
    lines = [line.split() for line in result.out.splitlines()]
    losses = found.layers["blocks.0.mlp.fc1"].all
    numbers = [losses.layer, losses.layer_relative, losses.layer_normalized]
    numbers += [losses.node.mean(), losses.node.max(), losses.node_normalized.mean()]
    row = ["blocks.0.mlp.fc1", "GELU", "64", *(f"{float(value):.3g}" for value in numbers)]
    assert row in lines
    pair = f"{float(found.pairwise[0, 1]):.3g}"
    assert ["reds", "-", pair] in lines
    assert ["shapes", pair, "-"] in lines
    assert ["reds", f"{found.experts['reds']:.3g}"] in lines
    assert ["all", "together", f"{found.overall:.3g}"] in lines
    assert "9 images" in result.out


def test_images_of_tasks_without_expert_are_left_out(run, config, files, data, tmp_path):
    content = yaml.safe_load(config.read_text())
    (task, *others) = reversed(TASKS)
    content["experts"] = {task: files.expert[task], "copy": files.base}
    config.write_text(yaml.safe_dump(content))
    result = run("mergeability", "--config", config, "--output", tmp_path / "found")
    assert result.code == 0, result.err
    encoder = MiniViT(**ENCODER)
    data.unlabelled_inputs, data.preprocess = 9, encoder.preprocess
    data.only([task])
    sampled = data.unlabelled_by_task()
    assert others
    opened = {name: open_checkpoint(file) for name, file in content["experts"].items()}
    expected = mergeability(
        open_checkpoint(files.base),
        opened,
        encoder.backbone,
        encoder.preprocess.finish(sampled[task]),
    )
    found = json.loads((tmp_path / "found" / FILES[0]).read_text())
    assert found["images"] == {task: len(sampled[task])}
    assert found["overall"] == pytest.approx(expected.overall)


def test_experts_of_no_task(run, config, files):
    content = yaml.safe_load(config.read_text())
    content["experts"] = {"one": files.base, "other": files.base}
    config.write_text(yaml.safe_dump(content))
    result = run("mergeability", "--config", config)
    assert result.code == 2
    assert "names none of one, other; name the experts after" in result.err


def test_a_residual_network(run, config, root, tmp_path):
    torch.manual_seed(0)
    backbone = MiniResNet(**RESNET).backbone
    files = {"base": tmp_path / "base.safetensors"}
    files |= {task: tmp_path / f"{task}.safetensors" for task in TASKS}
    for path in files.values():
        state = {n: t + 0.1 * torch.rand(t.shape) for n, t in backbone.state_dict().items()}
        save_checkpoint({n: t.to(backbone.state_dict()[n].dtype) for n, t in state.items()}, path)
    content = yaml.safe_load(config.read_text())
    content |= {"base": str(files["base"]), "experts": {task: str(files[task]) for task in TASKS}}
    content["encoder"] = {"class_path": "MiniResNet", "init_args": RESNET}
    config.write_text(yaml.safe_dump(content))
    result = run("mergeability", "--config", config, "--output", tmp_path / "found")
    assert result.code == 0, result.err
    layers = json.loads((tmp_path / "found" / FILES[0]).read_text())["layers"]
    assert list(layers) == ["conv1", *(f"layer{stage}.0.conv1" for stage in (1, 2, 3, 4))]
    assert all(len(layer["node"]) == 4 for layer in layers.values())


@pytest.mark.parametrize("name", FILES)
def test_results_are_not_replaced_unasked(run, config, tmp_path, name):
    folder = tmp_path / "found"
    folder.mkdir()
    (folder / name).write_text("old")
    options = ["mergeability", "--config", config, "--output", folder]
    result = run(*options)
    assert result.code == 2
    assert name in result.err
    assert [path.read_text() for path in folder.iterdir()] == ["old"]
    assert run(*options, "--overwrite", "true").code == 0
    assert (folder / name).read_bytes() != b"old"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--experts", "{reds: nowhere.safetensors}"], "nowhere.safetensors"),
        (["--layer_inputs", "both"], "layer_inputs"),
        (["--encoder.depth", "2"], "tensors are missing"),
        (["--output", "{base}"], "is a file: give a folder"),
        (["--outptu", "x"], "outptu"),
    ],
)
def test_bad_input_is_one_message(run, config, files, options, message, tmp_path):
    before = sorted(tmp_path.iterdir())
    options = [option.replace("{base}", files.base) for option in options]
    result = run("mergeability", "--config", config, *options)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert sorted(tmp_path.iterdir()) == before


def test_one_expert_has_nobody_to_merge_with(run, config, files):
    content = yaml.safe_load(config.read_text())
    content["experts"] = {"reds": files.expert["reds"]}
    config.write_text(yaml.safe_dump(content))
    result = run("mergeability", "--config", config)
    assert result.code == 2
    assert "at least 2 are needed" in result.err


@pytest.mark.parametrize("columns", ["20", "80", "200"])
@pytest.mark.parametrize("experts", [2, 20])
def test_no_number_is_cut_in_a_narrow_terminal(capsys, monkeypatch, columns, experts):
    from rich.table import Table

    from lightning_merge.cli.mergeability import show

    monkeypatch.setenv("COLUMNS", columns)
    table = Table()
    cells = [f"-{number}.23e-1{number % 10}" for number in range(experts)]
    for number in range(experts):
        table.add_column(f"a long title of column {number}", justify="right")
    table.add_row(*cells)
    show([table])
    text = capsys.readouterr().out
    assert all(cell in text for cell in cells)
