"""FineTune: what is trained, what is frozen, what is written and when."""

import json

import pytest
import torch
from tiny_zoo import TASKS

from lightning_merge import __version__
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.checkpoints.digests import file_hash
from lightning_merge.core.errors import InputError
from lightning_merge.data.augment import Augment
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.models import MiniResNet
from lightning_merge.models.head_files import load_heads
from lightning_merge.modules import FineTune


@pytest.fixture
def data(root):
    return MergeDataModule(root=str(root), tasks=["reds"], fit_on="train", batch_size=8)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "expert.safetensors"


def test_an_expert_is_trained_with_its_head_frozen(
    trainer, encoder, data, files, output, monkeypatch
):
    module = FineTune(
        encoder, str(output), files.base, files.heads, metadata={"made": "here"}, augment=Augment()
    )
    trainer(max_epochs=1).fit(module, datamodule=data)
    written, base = open_checkpoint(output), open_checkpoint(files.base)
    assert set(written) == set(base)
    assert any(not torch.equal(written[name], base[name]) for name in base)
    assert written.metadata["made"] == "here"
    known = written.metadata
    assert (known["method"], known["version"]) == ("FineTune", __version__)
    assert (known["base"], known["heads"]) == (file_hash(files.base), file_hash(files.heads))
    assert json.loads(known["tasks"]) == ["reds"]
    assert json.loads(known["images"]) == {"reds": data.digest("reds")}
    assert json.loads(known["hyperparameters"])["learning_rate"] == 1e-3
    assert int(known["seed"]) == torch.initial_seed()
    head = load_heads(files.heads)["reds"].state_dict()
    found = module.heads["reds"].state_dict()
    assert all(torch.equal(found[name], head[name]) for name in head)
    assert 0 <= module.measured["val"].average <= 1


def test_training_learns(trainer, encoder, data, output):
    module = FineTune(encoder, str(output), learning_rate=0.01)
    trainer(max_epochs=15).fit(module, datamodule=data)
    assert module.measured["val"].accuracy["reds"] > 0.9


def test_without_heads_one_is_trained_per_task_and_dropped(trainer, encoder, root, output):
    data = MergeDataModule(root=str(root), tasks=list(TASKS), fit_on="train", batch_size=8)
    module = FineTune(encoder, str(output))
    trainer(max_epochs=1).fit(module, datamodule=data)
    assert {task: head.out_features for task, head in module.heads.items()} == {
        task: len(classes) for task, classes in TASKS.items()
    }
    assert set(open_checkpoint(output)) == set(encoder.backbone.state_dict())


def test_several_tasks_with_frozen_heads_train_one_network(trainer, encoder, root, files, output):
    tasks = list(TASKS)
    data = MergeDataModule(root=str(root), tasks=tasks, fit_on="train", batch_size=8)
    module = FineTune(encoder, str(output), files.base, files.heads, learning_rate=0.01)
    trainer(max_epochs=15).fit(module, datamodule=data)
    assert min(module.measured["val"].accuracy.values()) > 0.8
    assert not any(p.requires_grad for p in module.heads.parameters())
    assert json.loads(open_checkpoint(output).metadata["tasks"]) == tasks


def test_unseen_tasks_are_measured_and_not_trained(trainer, encoder, root, files, output):
    options = {"root": str(root), "fit_on": "train", "batch_size": 8}
    all_tasks = MergeDataModule(tasks=list(TASKS), unseen=["shapes"], **options)
    module = FineTune(encoder, str(output), files.base, files.heads)
    torch.manual_seed(1)
    trainer(max_epochs=1).fit(module, datamodule=all_tasks)
    assert set(module.measured["val"].accuracy) == set(TASKS)
    assert json.loads(open_checkpoint(output).metadata["tasks"]) == ["reds"]
    alone = output.with_name("alone.safetensors")
    module = FineTune(encoder, str(alone), files.base, files.heads)
    torch.manual_seed(1)
    trainer(max_epochs=1).fit(module, datamodule=MergeDataModule(tasks=["reds"], **options))
    weights = open_checkpoint(output)
    assert all(torch.equal(weights[name], t) for name, t in open_checkpoint(alone).items())


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
def test_weights_are_stored_as_asked(trainer, encoder, data, output, storage):
    trainer(max_epochs=1).fit(FineTune(encoder, str(output), storage=storage), datamodule=data)
    stored = open_checkpoint(output)
    state = encoder.backbone.state_dict()
    for name, tensor in stored.items():
        assert tensor.dtype == getattr(torch, storage)
        assert torch.equal(tensor, state[name].to(tensor.dtype))


@pytest.mark.parametrize("update", [False, True])
def test_statistics_of_batch_norm_follow_the_images_where_asked(trainer, data, output, update):
    encoder = MiniResNet(image_size=8, channels=[4, 4, 8, 8])
    before = {n: t.clone() for n, t in encoder.backbone.state_dict().items()}
    module = FineTune(encoder, str(output), update_statistics=update)
    trainer(max_epochs=1).fit(module, datamodule=data)
    changed = {n for n, t in open_checkpoint(output).items() if not torch.equal(t, before[n])}
    assert {"conv1.weight", "bn1.weight"} <= changed
    statistics = {name for name in before if name.endswith(("running_mean", "running_var"))}
    assert changed & statistics == (statistics if update else set())


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_writes_no_output(trainer, encoder, data, output, fault):
    class Stopped(FineTune):
        def on_train_epoch_end(self):
            raise fault

    with pytest.raises((SystemExit, fault)):
        trainer().fit(Stopped(encoder, str(output)), datamodule=data)
    assert not output.exists()


def test_a_trial_run_writes_no_output(trainer, encoder, data, output):
    trainer(fast_dev_run=True).fit(FineTune(encoder, str(output)), datamodule=data)
    assert not output.exists()


def test_an_output_that_exists_is_kept_unless_told_otherwise(trainer, encoder, data, output):
    output.parent.mkdir()
    output.write_text("precious")
    with pytest.raises(InputError, match="exists"):
        trainer().fit(FineTune(encoder, str(output)), datamodule=data)
    assert output.read_text() == "precious"
    trainer().fit(FineTune(encoder, str(output), overwrite=True), datamodule=data)
    assert len(open_checkpoint(output))


@pytest.mark.parametrize("option", ["learning_rate", "weight_decay", "warmup", "label_smoothing"])
def test_a_number_out_of_range(encoder, option):
    with pytest.raises(InputError, match=f"{option}=-1"):
        FineTune(encoder, "x", **{option: -1})


def test_unknown_storage(encoder):
    with pytest.raises(InputError, match="storage='int8'"):
        FineTune(encoder, "x", storage="int8")


def test_a_task_of_one_class_is_refused(trainer, encoder, tmp_path, own_root, output):
    for split in ("train", "test"):
        (own_root / "reds" / split / "bright").rename(tmp_path / split)
    data = MergeDataModule(root=str(own_root), tasks=["reds"], fit_on="train")
    with pytest.raises(InputError, match="only the class 'dark'; give images of two"):
        trainer().fit(FineTune(encoder, str(output)), datamodule=data)


def test_a_checkpoints_heads_are_of_its_own_classes(trainer, encoder, own_root, output, tmp_path):
    data = MergeDataModule(root=str(own_root), tasks=["shapes"], fit_on="train", batch_size=8)
    training = trainer(max_epochs=1)
    training.fit(FineTune(encoder, str(output)), datamodule=data)
    saved = tmp_path / "last.ckpt"
    training.save_checkpoint(saved)
    again = FineTune(encoder, str(output))
    trainer().test(again, datamodule=data, ckpt_path=saved)
    for split in ("train", "test"):
        place = own_root / "shapes" / split
        (place / "bar").rename(place / "zebra")  # now the last of three
    moved = MergeDataModule(root=str(own_root), tasks=["shapes"], fit_on="train")
    with pytest.raises(InputError, match="'shapes' has the classes bar, box, dot, the data has "):
        trainer().test(FineTune(encoder, str(output)), datamodule=moved, ckpt_path=saved)
