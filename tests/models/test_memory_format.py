"""Memory formats: which networks get channels-last images, and that no number depends on it."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lightning_merge.core.checkpoints.checkpoint import save_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.models import (
    Encoder,
    ImagePreprocess,
    MiniResNet,
    MiniViT,
    OpenClipEncoder,
    TimmEncoder,
    TransformersEncoder,
)

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
HF = {"hidden_size": 8, "intermediate_size": 16, "image_size": 8, "patch_size": 4}
HF |= {"num_hidden_layers": 1, "num_attention_heads": 2}
NET = "test_efficientnet"  # timm's smallest, with squeeze-and-excitation
FEW = {"image_size": 16, "channels": [4, 6, 8, 10]}


def seen_by(encoder, images):
    """Whether the first convolution gets channels-last images."""
    found = []
    first = next(m for m in encoder.backbone.modules() if isinstance(m, nn.Conv2d))
    handle = first.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    encoder(images)
    handle.remove()
    return found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda **o: TimmEncoder("resnet10t", **o), "channels_last"),
        (lambda **o: TimmEncoder(NET, **o), "channels_last"),
        (lambda **o: TimmEncoder("vit_tiny_patch16_224", options=VIT, **o), "contiguous"),
        (lambda **o: MiniResNet(**o), "channels_last"),
        (lambda **o: MiniResNet(**FEW, **o), "contiguous"),
        (lambda **o: MiniViT(**o), "contiguous"),
        (lambda **o: OpenClipEncoder("TinyTimm", **o), "channels_last"),
        (lambda **o: OpenClipEncoder("Tiny", **o), "contiguous"),
        (lambda **o: TransformersEncoder(HF, **o), "contiguous"),
    ],
)
def test_automatic_where_most_parameters_are_convolutions(make, expected):
    encoder = make()
    side = encoder.preprocess.size
    assert encoder.memory_format == expected
    assert seen_by(encoder, torch.ones(1, 3, side, side)) == (expected == "channels_last")
    plain = make(memory_format="contiguous")
    assert plain.memory_format == "contiguous"
    assert not seen_by(plain, torch.ones(1, 3, side, side))


def test_an_encoder_of_ones_own_follows_the_rule():
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    preprocess = ImagePreprocess(size=8, mean=(0, 0, 0), std=(1, 1, 1))
    assert Encoder(body, preprocess, 8).memory_format == "channels_last"
    wide = nn.Sequential(*copy.deepcopy(body), nn.Linear(8, 99))
    assert Encoder(wide, preprocess, 99).memory_format == "contiguous"
    assert Encoder(wide, preprocess, 99, "channels_last").memory_format == "channels_last"


def test_wrong_formats_are_told():
    with pytest.raises(InputError, match="memory_format='nhwc': choose one of auto, contig"):
        TimmEncoder("resnet10t", memory_format="nhwc")
    with pytest.raises(InputError, match=r"layer2.0.downsample.0 .* fewer than 8 .* auto"):
        MiniResNet(**FEW, memory_format="channels_last")


@pytest.fixture
def pair():
    """One network in both formats."""
    torch.manual_seed(0)
    plain = TimmEncoder(NET, image_size=32, memory_format="contiguous")
    last = TimmEncoder(NET, image_size=32, memory_format="channels_last")
    state = {
        n: t + 0.1 * torch.rand_like(t) if t.is_floating_point() else t
        for n, t in plain.backbone.state_dict().items()
    }
    return plain.load(state), last.load(state)


def test_features_gradients_and_files_are_the_same(pair, images, tmp_path):
    plain, last = pair
    torch.testing.assert_close(last(images), plain(images), rtol=1e-4, atol=1e-5)
    grads = []
    for encoder in pair:
        state = {n: t.clone() for n, t in encoder.backbone.state_dict().items()}
        own = {n: state[n].requires_grad_() for n, _ in encoder.backbone.named_parameters()}
        encoder.functional(state | own, images).square().sum().backward()
        grads.append({n: t.grad for n, t in own.items() if t.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        scale = float(grad.abs().max())
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-3, atol=1e-4 * scale, msg=name)
    assert all(t.is_contiguous() for t in last.backbone.state_dict().values())
    files = [
        save_checkpoint(encoder.backbone.state_dict(), tmp_path / f"{encoder.memory_format}.st")
        for encoder in pair
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert load_file(files[0]).keys() == plain.backbone.state_dict().keys()


def test_it_survives_copies_and_transforms_of_functions(pair, images):
    plain, last = pair
    want = plain(images)
    other = copy.deepcopy(last)
    assert seen_by(other, images)
    state = dict(last.backbone.state_dict())

    def one(image):
        return last.functional(state, image[None])[0]

    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(one)(images), want, rtol=1e-4, atol=1e-5)
    jacobian = torch.func.jacrev(lambda bias: last.functional({**state, "bn1.bias": bias}, images))
    assert jacobian(state["bn1.bias"]).shape == (*want.shape, len(state["bn1.bias"]))
