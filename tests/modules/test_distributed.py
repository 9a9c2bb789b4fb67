"""Several processes of one run: what they compute is what one would, and one of them writes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import CPUShards, on
from tiny_zoo import ENCODER, TASKS

from lightning_merge.cli.main import main
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.data import Augment, MergeDataModule
from lightning_merge.models import MiniViT
from lightning_merge.modules import AdaMerging, FineTune, StatsMerging
from lightning_merge.runs import heads

# Evaluation

CANDIDATES = [
    {
        "class_path": "lightning_merge.callbacks.MergeCallback",
        "init_args": {
            "name": "tuned",
            "method": {"class_path": "TaskArithmetic"},
            "grid": {"scale": [0.2, 0.6]},
        },
    },
    {"class_path": "lightning_merge.callbacks.MTiesMerge"},
    {
        "class_path": "lightning_merge.callbacks.MergeCallback",
        "init_args": {
            "name": "surgery",
            "method": {"class_path": "Surgery", "init_args": {"steps": 3}},
        },
    },
    {"class_path": "lightning_merge.callbacks.CoefficientMap"},
]
COST = ("seconds", "peak_memory")


def content(path):
    """Bytes of all tensors of a file, and its metadata but for what merging took."""
    stored = open_checkpoint(path)
    tensors = {name: tensor.numpy().tobytes() for name, tensor in stored.items()}
    return tensors, {k: v for k, v in stored.metadata.items() if k not in COST}


def test_the_results_are_the_same_from_one_two_and_three_processes(
    command, config, tmp_path, capfd
):
    """Of 14 and 21 images in batches of 10, three processes get 1, 1, 0 and 1, 1, 1 batches."""
    path = config(
        trainer__callbacks=CANDIDATES,
        trainer__max_epochs=1,
        model__init_args__learning_rate=0.0,
        data__eval_batch_size=10,
        data__batch_size=2,
    )
    found = {}
    for size in (1, 2, 3):
        folder = tmp_path / f"run{size}"
        place = ["--trainer.default_root_dir", folder]
        capfd.readouterr()
        assert command(size, "fit", "--config", path, *on(size), *place) == [0] * size
        assert capfd.readouterr().out.count("run folder:") == 1
        assert command(size, "predict", "--config", path, *on(size), *place) == [0] * size
        results = json.loads((folder / "results.json").read_text())
        assert results["versions"].get("processes", "1") == str(size)
        found[size] = {
            "rows": {
                name: {key: row[key] for key in row if key not in COST}
                for name, row in results["candidates"].items()
            },
            "predictions": (folder / "predictions.csv").read_text(),
            "answers": content(folder / "correct.safetensors"),
            "splits": (folder / "splits.json").read_text(),
            "files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()),
            "merged": {p.name: content(p) for p in folder.glob("merged/*")},
        }
    assert found[1] == found[2] == found[3]
    rows = found[1]["rows"]
    assert list(rows) == ["base", "individual", "tuned", "m_ties", "surgery", "sml"]
    assert rows["base"]["samples"] == {"reds": 14, "shapes": 21}
    assert len(list(csv.DictReader(found[1]["predictions"].splitlines()))) == 14 + 21
    assert len({tuple(row["accuracy"].values()) for row in rows.values()}) > 2


# Training


@pytest.fixture
def learn(together, trainer, zoo, root):
    """Fit a module on several processes; returns what every process has learned."""

    def run(size, batch_size, root=root, kind=StatsMerging, **options):
        def work(rank):
            torch.manual_seed(11 if rank == 0 else 12)  # only the first one's counts
            data = MergeDataModule(str(root), tasks=list(TASKS), batch_size=batch_size)
            data.eval_batch_size = 5
            module = kind(MiniViT(**ENCODER), zoo, learning_rate=0.03, **options)
            strategy = "ddp" if size > 1 else "auto"
            trainer(devices=size, strategy=strategy).fit(module, datamodule=data)
            with torch.no_grad():
                return module.coefficients(), getattr(module, "teacher_logits", {})

        return together(size, work)

    return run


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": 8, "loss": "hard"},
        {"hidden": 8, "loss": "soft"},
        {"hidden": 8, "confidence": (0.0, 0.6)},
        {"kind": AdaMerging},
        {"kind": AdaMerging, "level": "task", "transductive": True},
    ],
    ids=["hard", "soft", "confident", "adamerging", "transductive"],
)
def test_a_step_of_two_is_one_of_the_union_of_their_batches(learn, options):
    (one, teacher), *_ = learn(1, 4, **options)
    both = learn(2, 2, **options)
    for values, logits in both:
        torch.testing.assert_close(values, one, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(logits[task], teacher[task]) for task in teacher)
    assert torch.equal(both[0][0], both[1][0])
    assert (one - 0.3).abs().max() > 0.02


def test_a_task_with_fewer_images_than_processes_is_seen_by_all(learn, own_root):
    for task in TASKS:
        for split in own_root.glob(f"{task}/train/*"):
            for image in sorted(split.iterdir())[5:]:
                image.unlink()
    (one, _), *_ = learn(1, 3, own_root, hidden=8)
    for values, _ in learn(3, 1, own_root, hidden=8):
        torch.testing.assert_close(values, one, rtol=1e-4, atol=1e-5)


@pytest.fixture
def tune(together, trainer, files, root, tmp_path):
    """Fine-tune on several processes; returns the weights of the file and what they measured."""

    def run(size, strategy="auto"):
        output = tmp_path / "expert.safetensors"

        def work(rank):
            torch.manual_seed(5)
            data = MergeDataModule(
                str(root), tasks=["shapes"], fit_on="train", batch_size=8 // size
            )
            data.eval_batch_size = 5  # 12 held-out images: three batches
            module = FineTune(
                MiniViT(**ENCODER), str(output), files.base, files.heads,
                augment=Augment(erase=0.3), weight_decay=0.5, overwrite=True,
            )  # fmt: skip
            trainer(devices=size, strategy=strategy).fit(module, datamodule=data)
            return module.measured["val"]

        measured = together(size, work)
        return dict(open_checkpoint(output)), measured

    return run


def test_two_processes_train_an_expert_as_one_does(tune, files):
    one, [alone] = tune(1)
    two, measured = tune(2, "ddp")
    assert measured == [alone, alone]
    assert alone.samples == {"shapes": 12}
    base = open_checkpoint(files.base)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=5e-5)
    assert max(float((one[name] - base[name]).abs().max()) for name in base) > 5e-3


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sharded_expert_is_trained_the_same_and_written_whole(tune):
    from timm.models.vision_transformer import Block

    two, measured = tune(2, "ddp")
    shards = CPUShards(process_group_backend="gloo", auto_wrap_policy={Block})
    sharded, also = tune(2, shards)
    assert also == measured
    assert list(sharded) == list(two)
    for name, weight in two.items():
        torch.testing.assert_close(sharded[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2])
def test_training_that_was_killed_goes_on_to_the_same_weights(
    command, together, expert_config, tmp_path, size
):
    def arguments(name):
        place = [f"--trainer.default_root_dir={tmp_path / name}"]
        output = [f"--model.output={tmp_path / name}.safetensors"]
        return ["fit", f"--config={expert_config}", *place, *output, *map(str, on(size))]

    def killed(rank):
        step = FineTune.training_step

        def training_step(module, batch, batch_idx):
            if module.current_epoch == 2 and batch_idx == 1 and rank == size - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(module, batch, batch_idx)

        FineTune.training_step = training_step
        return main(arguments("broken"))

    assert command(size, *arguments("whole")) == [0] * size
    assert together(size, killed)[-1] is None
    assert not (tmp_path / "broken.safetensors").exists()
    assert command(size, *arguments("broken")) == [0] * size
    assert (tmp_path / "broken" / "metrics.csv").read_text().count("\n3,") > 0
    whole, broken = (tmp_path / f"{name}.safetensors" for name in ("whole", "broken"))
    assert whole.read_bytes() == broken.read_bytes()


# One of them makes and writes


def test_what_a_zoo_lacks_is_made_by_one_process(together, config, own_files, root, expert_config):
    for file in (own_files.expert["shapes"], own_files.heads):
        Path(file).unlink()
    path = config(own_files, root, model__init_args__zoo__expert_recipe=str(expert_config))

    def fit(rank):
        made = []
        for owner, name in ((FineTune, "on_fit_end"), (heads, "save_heads")):
            real = getattr(owner, name)
            setattr(owner, name, lambda *a, real=real, **k: made.append(1) or real(*a, **k))
        return main(["fit", "--config", str(path), *map(str, on(2))]), len(made)

    assert together(2, fit) == [(0, 3), (0, 0)]  # heads are kept task by task
    assert open_checkpoint(own_files.expert["shapes"]).metadata["fingerprint"]
    assert together(2, fit) == [(0, 0), (0, 0)]


# As users start them


@pytest.mark.parametrize(
    "start",
    [
        ["-m", "lightning_merge"],
        pytest.param(
            ["-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "lightning_merge"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["lightning", "torchrun"],
)
def test_started_by_lightning_or_torchrun(config, tmp_path, start):
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, *start, "fit", "--config", str(config()), *map(str, on(2))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder:") == 1
    assert json.loads((tmp_path / "run" / "results.json").read_text())["versions"]["processes"]
