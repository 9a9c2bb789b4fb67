"""What modules that learn coefficients share: BatchNorm, offloading, memory, unseen tasks."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny_zoo import TASKS

from lightning_merge.callbacks import MergeCallback
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.data import MergeDataModule
from lightning_merge.methods import Dare, LearnedCoefficients, TaskArithmetic
from lightning_merge.models import MiniResNet
from lightning_merge.models.head_files import load_heads, save_heads
from lightning_merge.modules import AdaMerging, StatsMerging
from lightning_merge.modules.make_heads import make_heads
from lightning_merge.modules.zoo import Zoo

SMALL = {"image_size": 8, "channels": (4, 4, 8, 8)}


@pytest.fixture(scope="module")
def resnets(tmp_path_factory):
    """A small ResNet and two experts whose statistics are far apart."""
    folder = tmp_path_factory.mktemp("resnets")
    torch.manual_seed(0)
    base = {n: t.clone() for n, t in MiniResNet(**SMALL).backbone.state_dict().items()}
    save_checkpoint(base, folder / "base.safetensors")
    generator = torch.Generator().manual_seed(1)
    for number, task in enumerate(TASKS):
        expert = {
            name: t + (number + 1) * 0.2 * torch.rand(t.shape, generator=generator)
            if t.is_floating_point()
            else t
            for name, t in base.items()
        }
        save_checkpoint(expert, folder / f"{task}.safetensors")
    return Zoo(
        base=str(folder / "base.safetensors"),
        experts=str(folder / "{task}.safetensors"),
        heads=str(folder / "heads.safetensors"),
    )


@pytest.fixture
def resnet(resnets, data):
    encoder = MiniResNet(**SMALL)
    data.preprocess = encoder.preprocess
    data.load()
    save_heads(dict(make_heads(resnets, encoder, data, list(TASKS))), resnets.heads)
    return encoder


def statistics(weights):
    return {name: t for name, t in weights.items() if "running_" in name}


def of_all_images(encoder, data, weights):
    """Running statistics of one batch of all sampled images, by training mode and momentum 1."""
    network = MiniResNet(**SMALL)
    network.load(dict(weights))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    with torch.no_grad():
        network.backbone(encoder.preprocess.finish(data.unlabelled()))
    return statistics(network.backbone.state_dict())


@pytest.mark.parametrize("batch_norm", ["auto", "recalibrate", "average", "both"])
def test_every_merged_network_has_the_statistics_asked_for(
    trainer, resnet, resnets, data, batch_norm
):
    module = StatsMerging(resnet, resnets, hidden=4, batch_norm=batch_norm)
    callbacks = [
        MergeCallback(TaskArithmetic(0.4)),
        MergeCallback(TaskArithmetic(), name="tuned", grid={"scale": [0.1, 0.4]}),
    ]
    trainer(max_epochs=1, callbacks=callbacks).fit(module, datamodule=data)
    average = {
        name: sum(open_checkpoint(resnets.expert(task))[name] for task in TASKS) / 2
        for name in statistics(resnet.backbone.state_dict())
    }
    both = {"": True, "_not_recalibrated": False}
    suffixes = {"average": {"": False}, "both": both}.get(batch_norm, {"": True})
    names = [name + suffix for name in ("taskarithmetic", "tuned", "sml") for suffix in suffixes]
    assert sorted(module.candidates) == sorted(["base", "individual", *names])
    for suffix, recalibrated in suffixes.items():
        files = [module.candidates[name + suffix].weights for name in ("taskarithmetic", "sml")]
        files += [o.weights for o in module.candidates["tuned" + suffix].options.values()]
        for file in files:
            weights = dict(open_checkpoint(file))
            want = of_all_images(resnet, data, weights) if recalibrated else average
            for name, tensor in statistics(weights).items():
                torch.testing.assert_close(tensor, want[name], rtol=1e-4, atol=1e-5)


def test_statistics_that_all_experts_share_are_kept(trainer, resnet, resnets, data, tmp_path, root):
    """Experts with frozen statistics: recalibration would throw the base's away."""
    base = dict(open_checkpoint(resnets.base))
    for task in TASKS:
        expert = {**open_checkpoint(resnets.expert(task)), **statistics(base)}
        save_checkpoint(expert, tmp_path / f"{task}.safetensors")
    frozen = replace(resnets, experts=str(tmp_path / "{task}.safetensors"))
    module = StatsMerging(resnet, frozen, hidden=4)
    trainer(max_epochs=1, callbacks=[MergeCallback(TaskArithmetic(0.4))]).fit(
        module, datamodule=data
    )
    for name in ("sml", "taskarithmetic"):
        merged = open_checkpoint(module.candidates[name].weights)
        assert all(torch.equal(merged[n], t) for n, t in statistics(base).items())
        assert merged.metadata["batch_norm"] == "average"
    assert module.recalibrated is None
    assert "which all experts have kept" in module.notes()[0]
    task = next(iter(TASKS))
    one = dict(open_checkpoint(frozen.expert(task)))
    key = next(iter(statistics(one)))
    one[key] = torch.nextafter(one[key], torch.tensor(torch.inf))
    save_checkpoint(one, tmp_path / f"{task}.safetensors")
    module = StatsMerging(resnet, frozen, hidden=4)
    trainer(max_epochs=0).fit(module, datamodule=data)
    assert module.recalibrated is module.held_out


def test_learning_sees_statistics_of_its_batch_and_changes_none(trainer, resnet, resnets, data):
    """A step's gradient is that of the merged network in training mode."""
    seen = {}

    class Watched(AdaMerging):
        def training_step(self, batch, batch_idx):
            before = {name: t.clone() for name, t in self.stacked.fixed.items()}
            values = self.coefficients().detach().requires_grad_()
            weights = self.stacked.merge(values)
            network = MiniResNet(**SMALL)
            network.update_statistics = True
            network.train()
            images = torch.cat([part.inputs for part in batch.values()])
            parts = network.functional(weights, images).split(
                [len(p.labels) for p in batch.values()]
            )
            losses = [
                self.task_loss(task, self.heads[task](part), batch[task])
                for task, part in zip(batch, parts, strict=True)
            ]
            (want,) = torch.autograd.grad(torch.stack(losses).mean(), values)
            loss = super().training_step(batch, batch_idx)
            (raw,) = torch.autograd.grad(loss, self.learner.network.values, retain_graph=True)
            seen["gap"] = (raw.squeeze(-1) - want).abs().max() / want.abs().max()
            assert all(torch.equal(t, before[name]) for name, t in self.stacked.fixed.items())
            return loss

    trainer(max_epochs=1, limit_train_batches=1).fit(Watched(resnet, resnets), datamodule=data)
    assert seen["gap"] < 1e-4


def test_offloading_changes_nothing(trainer, encoder, zoo, data):
    found = []
    for offload in (False, True):
        torch.manual_seed(3)
        module = AdaMerging(encoder, zoo, learning_rate=0.05, offload=offload)
        trainer(max_epochs=2).fit(module, datamodule=data)
        with torch.no_grad():
            found.append(module.coefficients())
    assert torch.equal(*found)


def test_the_encoder_keeps_the_base_and_no_copy_of_it(trainer, encoder, zoo, data, files):
    shared = []

    class Watched(AdaMerging):
        def training_step(self, batch, batch_idx):
            own = dict(self.encoder.backbone.named_parameters())
            shared.append(
                all(own[n].data_ptr() == t.data_ptr() for n, t in self.stacked.base.items())
            )
            return super().training_step(batch, batch_idx)

    module = Watched(encoder, zoo)
    trainer(max_epochs=1).fit(module, datamodule=data)
    assert shared
    assert all(shared)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    base = open_checkpoint(files.base)
    assert all(torch.equal(t, base[name]) for name, t in module.stacked.base.items())


def test_unseen_tasks_are_measured_and_no_more(trainer, encoder, zoo, own_root, own_files):
    """A third task, unseen, changes nothing about the two others' merge, whatever it holds."""
    shutil.copytree(own_root / "reds", own_root / "third")
    for number, image in enumerate((own_root / "third").rglob("*.png")):
        Image.new("RGB", (8, 8), (number, number, 40)).save(image)  # no two are alike
    shutil.copy(own_files.expert["reds"], own_files.folder / "third.safetensors")
    heads = load_heads(own_files.heads)
    save_heads({**heads, "third": heads["reds"]}, Path(own_files.heads))
    files = Zoo(own_files.base, own_files.experts, own_files.heads)
    found = []
    for unseen in (["third"], []):
        tasks = [*TASKS, *unseen]
        data = MergeDataModule(str(own_root), tasks=tasks, unseen=unseen, batch_size=8)
        module = AdaMerging(encoder, files, learning_rate=0.05)
        run = trainer(max_epochs=1)
        run.fit(module, datamodule=data)
        run.test(module, datamodule=data, verbose=False)
        with torch.no_grad():
            found.append((module.coefficients(), module.measured["test"].accuracy))
    (values, accuracy), (alone, _) = found
    assert torch.equal(values, alone)
    assert values.shape[0] == 2
    assert set(accuracy) == {*TASKS, "third"}
    assert set(module.candidates) == {"base", "individual", "adamerging"}


def test_mixed_precision_in_float16_scales_the_loss(encoder, zoo):
    module = AdaMerging(encoder, zoo)
    scaler = SimpleNamespace(get_scale=lambda: 1024.0)
    module._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    assert module._loss_scale == 1024.0
    module._trainer.precision_plugin.scaler = None
    assert module._loss_scale == 1.0


def test_images_that_trained_the_experts_are_refused(trainer, encoder, zoo, root):
    data = MergeDataModule(str(root), tasks=list(TASKS), fit_on="train")
    with pytest.raises(InputError, match=r"data\.fit_on='train'"):
        trainer(max_epochs=1).fit(AdaMerging(encoder, zoo), datamodule=data)


def test_evaluation_batches_do_not_matter_to_statistics(trainer, resnet, resnets, data):
    found = []
    for size in (4, 16):
        data.eval_batch_size = size
        torch.manual_seed(0)
        module = AdaMerging(resnet, resnets)
        trainer(max_epochs=1).fit(module, datamodule=data)
        found.append(statistics(dict(open_checkpoint(module.candidates["adamerging"].weights))))
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name])
    (note,) = module.notes()
    assert f"those of {len(data.unlabelled())} unlabelled held-out images" in note


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "64-true"}, "precision='64-true'"),
        ({"precision": "bf16-true"}, "precision='bf16-true'"),
    ],
)
def test_precisions_that_are_not_float32_are_refused(trainer, encoder, zoo, data, options, message):
    with pytest.raises(InputError, match=message):
        trainer(**options).fit(AdaMerging(encoder, zoo), datamodule=data)


def test_random_transforms_follow_the_seed_of_the_run(trainer, encoder, zoo, data, monkeypatch):
    stacks = []
    for seed in ("1", "2", "1"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        module = AdaMerging(encoder, zoo, transforms=[Dare(0.5)])
        trainer(max_epochs=1, limit_train_batches=1).fit(module, datamodule=data)
        stacks.append(max(module.stacked.stacks.values(), key=torch.numel))
    assert torch.equal(stacks[0], stacks[2])
    assert not torch.equal(stacks[0], stacks[1])


def learned(trainer, encoder, zoo, data, **options):
    """Fit AdaMerging, and return its file of coefficients moved out of the way."""
    module = AdaMerging(encoder, zoo, learning_rate=0.05, **options)
    trainer(max_epochs=1).fit(module, datamodule=data)
    file = module.run_folder / "coefficients.safetensors"
    return str(file.rename(file.with_name("other.safetensors")))


@pytest.mark.parametrize("grid", [None, {"by": ["layer", "depth"]}])
def test_what_was_learned_on_test_images_stays_marked(trainer, encoder, zoo, data, grid):
    file = learned(trainer, encoder, zoo, data, transductive=True)
    module = AdaMerging(encoder, zoo)
    callbacks = [MergeCallback(LearnedCoefficients(file), "again", grid)]
    trainer(max_epochs=1, callbacks=callbacks).fit(module, datamodule=data)
    again = module.candidates["again"]
    assert again.transductive
    assert all(option.transductive for option in (again.options or {}).values())
    assert not module.candidates["adamerging"].transductive


def test_what_was_learned_on_true_labels_stays_noted(trainer, encoder, zoo, data):
    teacher = StatsMerging(encoder, zoo, hidden=4, loss="labels")
    trainer(max_epochs=1).fit(teacher, datamodule=data)
    file = teacher.run_folder / "coefficients.safetensors"
    again = LearnedCoefficients(str(file.rename(file.with_name("other.safetensors"))))
    module = AdaMerging(encoder, zoo)
    trainer(max_epochs=1, callbacks=[MergeCallback(again, "again")]).fit(module, datamodule=data)
    assert "true labels" in module.candidates["again"].note


def test_what_was_learned_on_an_unseen_task_is_refused(trainer, encoder, zoo, data, monkeypatch):
    file = learned(trainer, encoder, zoo, data)
    monkeypatch.setattr(data, "unseen", ("shapes",))
    callbacks = [MergeCallback(LearnedCoefficients(file, "depth"), "again")]
    with pytest.raises(InputError, match=r"data\.unseen=\['shapes'\]: 'again'"):
        trainer(callbacks=callbacks).fit(AdaMerging(encoder, zoo), datamodule=data)
