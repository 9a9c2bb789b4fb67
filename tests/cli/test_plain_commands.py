"""The merge and list commands against the Python they stand for."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from tiny_zoo import ENCODER, TASKS

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.checkpoints.digests import file_fingerprint
from lightning_merge.core.checkpoints.writer import CheckpointWriter
from lightning_merge.data.drawn import DRAWN_TASKS
from lightning_merge.data.tasks import TASKS as KNOWN_TASKS
from lightning_merge.methods import Average, Dare, LwPTV, MTies, TaskArithmetic, Ties
from lightning_merge.methods.base import Method, Transform, registered
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.mini_vit import MiniViT

METHODS = {
    "average": (Average(), ["--method", "Average"]),
    "ties": (Ties(density=0.3, scale=0.5), ["--method", "Ties", "--method.density", "0.3",
                                           "--method.scale", "0.5"]),
    "transform by its name": (
        TaskArithmetic(transforms=[Dare()]),
        ["--method", "TaskArithmetic", "--method.transforms", "Dare"],
    ),
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
    assert written.metadata["hyperparameters"] == method.described()
    assert written.metadata["base"] == f"sample:{file_fingerprint(files.base)}"
    for task in TASKS:
        wanted = f"sample:{file_fingerprint(files.expert[task])}"
        assert written.metadata[f"expert/{task}"] == wanted


def test_jobs_shards_and_dtype_change_nothing_else(merge, files, run, tmp_path):
    whole = merge("--method", "Ties", "--jobs", "1")
    chosen = [word for task in TASKS for word in (f"--experts.{task}", files.expert[task])]
    result = run(
        "merge", "--base", files.base, *chosen, "--output", tmp_path / "folder", "--method", "Ties",
        "--jobs", "3", "--max-shard-size", "2KB", "--dtype", "bfloat16",
    )  # fmt: skip
    assert result.code == 0, result.err
    shards = open_checkpoint(tmp_path / "folder")
    assert len([*(tmp_path / "folder").glob("*.safetensors")]) > 1
    assert set(shards) == set(whole)
    for name, tensor in whole.items():
        assert torch.equal(shards[name], tensor.bfloat16()), name


def test_ignored_tensors_are_the_bases(merge, files):
    written = merge("--method", "Average", "--ignore", "[blocks.0.*]")
    base, whole = open_checkpoint(files.base), merge("--method", "Average", "--overwrite", "true")
    ignored = {name for name in base if name.startswith("blocks.0.")}
    assert ignored
    for name in base:
        assert torch.equal(written[name], base[name] if name in ignored else whole[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ignore", "[nothing.like.it]"], "nothing.like.it"),
        (["--jobs", "0"], "jobs=0"),
        (["--method", "Tiess"], "did you mean Ties?"),
        (["--method", "LwPTV"], "is a transform"),
        (["--method", "Frobnicate"], "Available: Average, "),
        (["--method.scal", "1"], "method: unknown option 'scal'; did you mean scale?"),
        (["--method.scale", "big"], "method.scale=big: give a number"),
        (["--method.transforms", "[{class_path: Dar}]"], "did you mean Dare? Available: Absol"),
        (["--ingore", "x"], "unknown option --ingore; did you mean --ignore?"),
        (["--max-shard-size", "big"], "max_shard_size='big'"),
        (["--output", "merged.pt"], "merged.safetensors"),
        (["--method.scale", "1e39"], "choose a smaller scale"),
    ],
)
def test_merge_names_what_is_wrong(run, files, tmp_path, options, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = [word for task in TASKS for word in (f"--experts.{task}", files.expert[task])]
    before = ["merge", "--base", files.base, *chosen, "--output", tmp_path / "m.safetensors"]
    result = run(*before, "--method", "TaskArithmetic", *options)
    assert result.code == 2
    assert message in result.err
    told = [line for line in result.err.splitlines() if not line.startswith("warning: ")]
    assert len(told) == 1
    assert not [*tmp_path.glob("*m*.safetensors"), *tmp_path.glob(".*")]


def test_one_expert_is_interpolated_with_the_base(run, files, tmp_path):
    target = tmp_path / "m.safetensors"
    before = ["merge", "--base", files.base, "--experts.reds", files.expert["reds"]]
    transform = ["--method", "Average", "--method.transforms", "[{class_path: WiSEFT}]"]
    assert run(*before, *transform, "--output", target).code == 0
    base, expert = open_checkpoint(files.base), open_checkpoint(files.expert["reds"])
    for name, merged in open_checkpoint(target).items():
        torch.testing.assert_close(merged, (base[name] + expert[name]) / 2)


def test_merge_never_replaces_its_input(run, files):
    chosen = [word for task in TASKS for word in (f"--experts.{task}", files.expert[task])]
    options = ["--output", files.base, "--method", "Average", "--overwrite", "true"]
    result = run("merge", "--base", files.base, *chosen, *options)
    assert result.code == 2
    assert "is the base itself" in result.err


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "term")]
)
def test_a_merge_that_is_stopped_leaves_nothing(
    run, files, tmp_path, monkeypatch, number, code, word
):
    """In the middle of writing, with another merge's output in the way or not."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    write = CheckpointWriter.write

    def stop(*given):
        write(*given)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(CheckpointWriter, "write", stop)
    chosen = [word for task in TASKS for word in (f"--experts.{task}", files.expert[task])]
    output = tmp_path / "out" / "merged.safetensors"
    result = run("merge", "--base", files.base, *chosen, "--method", "Ties", "--output", output)
    signal.signal(signal.SIGINT, handler)
    assert result.code == code
    assert word in result.err
    assert "nothing was written" in result.err
    assert list(output.parent.iterdir()) == []


def test_merging_weights_imports_no_lightning(files, tmp_path):
    chosen = [word for task in TASKS for word in (f"--experts.{task}", str(files.expert[task]))]
    arguments = ["merge", "--base", str(files.base), *chosen, "--method", "Ties"]
    arguments += ["--output", str(tmp_path / "m.safetensors")]
    code = (
        "import sys; from lightning_merge.cli.main import main; "
        f"assert main({arguments!r}) == 0; "
        "heavy = {'lightning', 'torchvision', 'transformers', 'timm', 'sklearn', 'matplotlib'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
        batches=encoder.preprocess.finish(data.unlabelled()),
    )
    assert all(torch.equal(written[tensor], expected[tensor]) for tensor in expected)


def test_images_are_those_of_the_experts_tasks(run, files, root, tmp_path):
    """Tasks of the folder that no expert is of have no say; the file tells whose images did."""
    own = shutil.copytree(root, tmp_path / "data")
    shutil.copytree(own / "reds", own / "another")
    words = [w for task in TASKS for w in (f"--experts.{task}", files.expert[task])]
    words += ["--base", files.base, "--method", "MTies", "--data.root", own]
    words += ["--encoder", "MiniViT", *(f"--encoder.{k}={v}" for k, v in ENCODER.items())]
    outputs = []
    for name, more in (("all", []), ("own", ["--data.tasks", json.dumps(list(TASKS))])):
        outputs.append(tmp_path / f"{name}.safetensors")
        done = run("merge", *words, *more, "--output", outputs[-1])
        assert done.code == 0, done.err
    first, second = map(open_checkpoint, outputs)
    assert set(json.loads(first.metadata["images"])) == set(TASKS)
    assert first.metadata["images_sha256"] == second.metadata["images_sha256"]
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_lacking_heads_are_told_before_images_are_looked_for(run, files, tmp_path):
    words = [w for task in TASKS for w in (f"--experts.{task}", files.expert[task])]
    words += ["--base", files.base, "--method", "Fisher", "--data.root", tmp_path / "none"]
    words += ["--data.tasks", json.dumps(list(TASKS)), "--output", tmp_path / "m.safetensors"]
    words += ["--encoder", "MiniViT", *(f"--encoder.{k}={v}" for k, v in ENCODER.items())]
    assert "and --heads" in run("merge", *words).err
    assert "holds no heads" in run("merge", *words, "--heads", files.base).err


def test_list_shows_all_there_is(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def ours(kinds):  # and not those that other tests define
        return {n: c for n, c in kinds.items() if c.__module__.startswith("lightning_merge.")}

    everything = {
        "methods": ours(registered(Method)),
        "transforms": ours(registered(Transform)),
        "tasks": {**KNOWN_TASKS, **DRAWN_TASKS},
        "encoders": ours(registered(Encoder)),
    }
    shown = {what: run("list", "--what", what).out for what in everything}
    out = run("list").out
    words = out.split()
    assert max(map(len, out.splitlines())) <= 80
    for cls in {**everything["methods"], **everything["transforms"]}.values():
        assert cls.facts.words() in " ".join(words)
    for what, names in everything.items():
        assert names
        for name in names:
            assert name in words
            assert name in shown[what].split()


def test_a_device_without_images_is_no_use_and_says_so(run, files, tmp_path):
    chosen = [word for task in TASKS for word in (f"--experts.{task}", files.expert[task])]
    common = ("merge", "--base", files.base, *chosen, "--output", tmp_path / "o.safetensors")
    lacking = run(*common, "--method", "MTies", "--device", "cpu")
    assert lacking.code != 0
    assert "--encoder" in lacking.err
    plain = run(*common, "--method", "Average", "--device", "cpu")
    assert plain.code == 0, plain.err
    assert "no image is looked at" in plain.out
