"""MiniResNet against the definition of a residual network, and timm's ResNet-50 as an encoder."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_merge.core.checkpoints.checkpoint import save_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.batch_norm import has_batch_norm
from lightning_merge.models import MiniResNet, MiniViT, TimmEncoder

SMALL = {"image_size": 16, "channels": [4, 6, 8, 10], "layers": [1, 2, 1, 1]}


def randomised(encoder):
    """Weights that leave no branch at its zero start."""
    generator = torch.Generator().manual_seed(1)
    state = {
        n: t + 0.2 * torch.rand(t.shape, generator=generator) if t.is_floating_point() else t
        for n, t in encoder.backbone.state_dict().items()
    }
    return encoder.load(state), state


def by_hand(state, images):
    """A residual network of basic blocks, written down from its paper."""

    def conv(name, x, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(name, x):
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in parts))

    x = norm("bn1", conv("conv1", images)).relu()
    for stage in (1, 2, 3, 4):
        blocks = sorted({n.split(".")[1] for n in state if n.startswith(f"layer{stage}.")})
        for block in blocks:
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == "0" else 1
            y = norm(f"{name}.bn1", conv(f"{name}.conv1", x, stride)).relu()
            y = norm(f"{name}.bn2", conv(f"{name}.conv2", y))
            if f"{name}.downsample.0.weight" in state:
                x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
            x = (x + y).relu()
    return x.mean((2, 3))


def test_it_is_a_residual_network_without_pooling_in_front():
    encoder, state = randomised(MiniResNet(**SMALL))
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    features = encoder(images)
    assert features.shape == (3, encoder.dim) == (3, 10)
    torch.testing.assert_close(features, by_hand(state, images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.functional(state, images), features)


def test_a_half_precision_file_of_the_default_is_below_a_megabyte(tmp_path):
    encoder = MiniResNet()
    assert sum(p.numel() for p in encoder.parameters()) < 480_000
    assert encoder.preprocess == MiniViT().preprocess
    assert has_batch_norm(encoder.backbone)
    state = encoder.backbone.state_dict()
    half = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    path = save_checkpoint(half, tmp_path / "half.safetensors")
    assert path.stat().st_size < 1e6
    again = MiniResNet(weights=str(path)).backbone.state_dict()
    assert all(torch.equal(again[n], t.to(again[n].dtype)) for n, t in half.items())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": [4, 6, 8]}, r"channels=\[4, 6, 8\].*four"),
        ({"layers": [1, 0, 1, 1]}, r"layers=\[1, 0, 1, 1\].*1 or more"),
        ({"channels": [5, 6, 8, 10]}, "must be even"),
    ],
)
def test_bad_shapes(wrong, message):
    with pytest.raises(InputError, match=message):
        MiniResNet(**{**SMALL, **wrong})


def test_resnet50_of_timm_is_an_encoder_with_statistics():
    encoder = TimmEncoder("resnet50")
    state = encoder.backbone.state_dict()
    assert encoder(torch.zeros(2, 3, 64, 64)).shape == (2, encoder.dim) == (2, 2048)
    assert not any(name.startswith("fc") for name in state)
    assert {name.rpartition(".")[2] for name in state} >= {"running_mean", "running_var"}
    assert has_batch_norm(encoder.backbone)
    layers = [m for m in encoder.train().backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(layers) == 53
    assert not any(layer.training for layer in layers)
