"""Training that ends in NaN or infinite numbers ends with an error, and leaves nothing behind."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from tiny_zoo import TASKS

from lightning_merge.cli.resume import LastCheckpoint
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.data import MergeDataModule
from lightning_merge.models import MiniResNet, MiniViT
from lightning_merge.modules import AdaMerging, FineTune, StatsMerging
from lightning_merge.modules.divergence import first_not_finite


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({"a": [1.0, 2.0], "b": [3e38, 3e38]}, None),  # the sum alone is infinite
        ({"a": [1.0], "b": [3e38, 3e38, math.inf]}, "b (infinite)"),
        ({"a": [math.inf, -math.inf], "b": [math.nan]}, "a (infinite)"),
        ({"a": [math.inf, math.nan]}, "a (NaN)"),
        ({"a": [2**62, 2**62]}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_first_tensor_that_is_not_finite_is_named(tensors, found, dtype):
    made = {n: torch.tensor(v) for n, v in tensors.items()}
    made = {n: t.to(dtype) if t.is_floating_point() else t for n, t in made.items()}
    assert first_not_finite(made.items()) == found


class Spoil(Callback):
    """Puts a number into a tensor after a certain step."""

    def __init__(self, step, value=math.nan, name=None):
        self.step, self.value, self.name = step, value, name

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            named = {**dict(pl_module.named_parameters()), **dict(pl_module.named_buffers())}
            learned = {n: t for n, t in named.items() if n == self.name or t.requires_grad}
            learned[self.name or [*learned][-1]].data.view(-1)[0] = self.value


@pytest.fixture
def fit(trainer, files, zoo, encoder, root, tmp_path):
    """Fit a module of a kind, its run folder that of the trainer."""

    def call(kind, *callbacks, ckpt_path=None, encoder=encoder, **options):
        train = kind is FineTune
        data = MergeDataModule(
            root=str(root), tasks=list(TASKS), batch_size=8,
            fit_on="train" if train else "coefficients",
        )  # fmt: skip
        if train:
            options = {"base": files.base, "heads": files.heads, **options}
            module = FineTune(encoder, str(tmp_path / "out.safetensors"), **options)
        else:
            module = kind(encoder, zoo, **options)
        last = LastCheckpoint(tmp_path / "run")
        run = trainer(max_epochs=3, callbacks=[*callbacks, last], enable_checkpointing=True)
        run.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module

    return call


def written(folder):
    return {path.name for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("kind", [FineTune, StatsMerging])
def test_a_learning_rate_that_is_too_high(fit, tmp_path, kind):
    words = r"epoch \d+, step \d+: [\w.]+ \((NaN|infinite)\) .*learning_rate below 1e\+30"
    with pytest.raises(InputError, match=words):
        fit(kind, learning_rate=1e30)
    assert not written(tmp_path)
    for last in tmp_path.rglob("*.ckpt"):  # of an epoch before
        assert first_not_finite(torch.load(last, weights_only=True)["state_dict"].items()) is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (FineTune, "encoder.backbone.blocks.0.norm1.weight"),
        (AdaMerging, None),
        (StatsMerging, None),
    ],
)
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_the_checkpoint_of_the_last_good_epoch_is_kept(fit, tmp_path, kind, name, value):
    steps = 6 if kind is FineTune else 1
    with pytest.raises(InputError, match="diverged in epoch 1"):
        fit(kind, Spoil(2 * steps, value, name))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    found = torch.load(last, weights_only=True)
    assert found["global_step"] == steps
    assert first_not_finite(found["state_dict"].items()) is None
    fit(kind, ckpt_path=str(last))
    assert written(tmp_path) & {"out.safetensors", "coefficients.safetensors"}


def test_within_a_long_epoch(fit, monkeypatch):
    monkeypatch.setattr("lightning_merge.modules.base.EVERY", 2)
    with pytest.raises(InputError, match="epoch 0, step 2: "):
        fit(FineTune, Spoil(1))


def test_statistics_of_batches(fit, tmp_path):
    options = {"base": None, "heads": None, "update_statistics": True}
    name = "encoder.backbone.stem.1.running_var"
    encoder = MiniResNet(image_size=8, channels=(8, 8, 8, 8))
    name = next(n for n, _ in encoder.named_buffers() if n.endswith("running_var"))
    with pytest.raises(InputError, match=name.removeprefix("backbone.")):
        fit(FineTune, Spoil(4, math.inf, f"encoder.{name}"), encoder=encoder, **options)
    assert not (tmp_path / "out.safetensors").exists()


def test_no_step_with_a_finite_loss(fit, monkeypatch):
    """As of mixed precision in float16, whose scaler leaves every step out."""
    step = FineTune.training_step
    monkeypatch.setattr(FineTune, "training_step", lambda *args: step(*args) * math.nan)

    def leave_out(module, optimizer):
        for parameter in module.parameters():
            parameter.grad = None

    monkeypatch.setattr(FineTune, "on_before_optimizer_step", leave_out)
    with pytest.raises(InputError, match="epoch 0, step 6: the loss of no step is finite"):
        fit(FineTune)


@pytest.mark.parametrize(("storage", "fits"), [("float16", False), ("bfloat16", True)])
def test_storage_that_cannot_hold_the_weights(fit, files, encoder, tmp_path, storage, fits):
    base = {n: t.clone() for n, t in open_checkpoint(files.base).items()}
    name = "blocks.0.norm1.weight"
    base[name].view(-1)[0] = 70_000
    save_checkpoint(base, tmp_path / "wide.safetensors")
    options = {"base": str(tmp_path / "wide.safetensors"), "storage": storage}
    if fits:
        fit(FineTune, learning_rate=1e-9, **options)
        assert open_checkpoint(tmp_path / "out.safetensors")[name].dtype == torch.bfloat16
        return
    with pytest.raises(InputError, match=f"storage='float16' cannot hold {name}, .* 70000"):
        fit(FineTune, learning_rate=1e-9, **options)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_checkpoint_of_another_network_is_refused(fit, tmp_path):
    fit(FineTune)
    last = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    other = MiniViT(image_size=8, width=8, depth=1, num_heads=1, channels=[4], strides=[4])
    with pytest.raises(InputError, match="does not fit FineTune and its encoder"):
        fit(FineTune, ckpt_path=last, encoder=other, base=None, heads=None, overwrite=True)
