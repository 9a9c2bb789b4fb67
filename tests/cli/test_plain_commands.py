"""The merge and list commands against the Python they stand for."""

import pytest
import torch
from tiny_zoo import ENCODER, TASKS

from lightning_merge.core.checkpoint import file_hash, open_checkpoint
from lightning_merge.data.tasks import TASKS as KNOWN_TASKS
from lightning_merge.methods import Average, LwPTV, MTies, TaskArithmetic, Ties
from lightning_merge.methods.base import MergeMethod, Transform, registered
from lightning_merge.models import encoders
from lightning_merge.models.mini_vit import MiniViT

METHODS = {
    "average": (Average(), ["--method", "Average"]),
    "ties": (Ties(density=0.3, scale=0.5), ["--method", "Ties", "--method.density", "0.3",
                                           "--method.scale", "0.5"]),
    "composed": (
        TaskArithmetic(scale=0.3, transforms=[LwPTV(prune_ratio=0.5)]),
        ["--method", "TaskArithmetic", "--method.transforms",
         '[{"class_path": "LwPTV", "init_args": {"prune_ratio": 0.5}}]'],
    ),
}  # fmt: skip


@pytest.fixture
def merge(run, files, tmp_path):
    def call(*options):
        chosen = [word for task in TASKS for word in (f"--experts.{task}", files.expert[task])]
        output = tmp_path / "merged.safetensors"
        result = run("merge", "--base", files.base, *chosen, "--output", output, *options)
        assert result.code == 0, result.err
        return open_checkpoint(output)

    return call


@pytest.mark.parametrize("name", METHODS)
def test_merge_is_the_python_call(merge, files, name):
    method, options = METHODS[name]
    written = merge(*options)
    experts = {task: open_checkpoint(file) for task, file in files.expert.items()}
    expected = method(open_checkpoint(files.base), experts)
    assert set(written) == set(expected)
    assert all(torch.equal(written[tensor], expected[tensor]) for tensor in expected)
    assert written.metadata["method"] == type(method).__name__
    stated = written.metadata["hyperparameters"].replace("transforms=[]", "transforms=()")
    assert stated == repr(method)
    assert written.metadata["base"] == file_hash(files.base)
    for task in TASKS:
        assert written.metadata[f"expert/{task}"] == file_hash(files.expert[task])


def test_merge_by_a_config_and_with_images(merge, files, root, tmp_path, data):
    config = tmp_path / "merge.yaml"
    config.write_text(
        "method: {class_path: MTies, init_args: {keep: 0.4}}\n"
        f"encoder: {{class_path: MiniViT, init_args: {ENCODER}}}\n"
        f"data: {{root: {root}, tasks: {list(TASKS)}}}\n"
    )
    written = merge("--config", config)
    encoder = MiniViT(**ENCODER)
    data.preprocess = encoder.preprocess
    expected = MTies(keep=0.4)(
        open_checkpoint(files.base),
        {task: open_checkpoint(file) for task, file in files.expert.items()},
        model=encoder.backbone,
        batches=encoder.preprocess.normalize(data.unlabelled()),
    )
    assert all(torch.equal(written[tensor], expected[tensor]) for tensor in expected)


def test_list_shows_all_there_is(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    everything = {
        "methods": registered(MergeMethod),
        "transforms": registered(Transform),
        "tasks": KNOWN_TASKS,
        "encoders": encoders(),
    }
    shown = {what: run("list", "--what", what).out for what in everything}
    words = run("list").out.split()
    for what, names in everything.items():
        assert names
        for name in names:
            assert name in words
            assert name in shown[what].split()
