import subprocess
import sys

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call

from lightning_merge.core.errors import InputError
from lightning_merge.models import (
    Encoder,
    MiniViT,
    OpenClipEncoder,
    TimmEncoder,
    TransformersEncoder,
    encoders,
)

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
HF = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def build(kind: str) -> Encoder:
    from lightning_merge.models import TransformersEncoder

    torch.manual_seed(0)
    if kind.startswith("Tiny"):
        return OpenClipEncoder(kind)
    if kind == "MiniViT":
        return MiniViT(width=32, depth=1, num_heads=2, channels=(8, 16), strides=(2, 4))
    if kind == "transformers":
        return TransformersEncoder(HF)
    return TimmEncoder(kind, options=VIT if kind.startswith("vit") else None)


KINDS = [
    "Tiny",
    "TinyResNet",
    "TinyTimm",
    "TinyCoCa",
    "vit_tiny_patch16_224",
    "resnet10t",
    "eva02_tiny_patch14_224",
    "MiniViT",
    "transformers",
]


@pytest.fixture(params=KINDS)
def encoder(request) -> Encoder:
    if request.param.startswith("eva"):  # rotary positions: buffers that no checkpoint holds
        return TimmEncoder(request.param, options={**VIT, "embed_dim": 96})
    return build(request.param)


def test_features_have_the_stated_width(encoder, images):
    features = encoder(images)
    assert features.shape == (3, encoder.dim)
    assert not encoder.training
    size = encoder.preprocess.size
    assert size == 32 or isinstance(encoder, TimmEncoder)


def test_functional_features_follow_the_state(encoder, images):
    state = {n: t.detach().clone() for n, t in encoder.backbone.state_dict().items()}
    features = encoder(images)
    name = next(n for n, t in state.items() if t.ndim > 1)
    state[name].mul_(0.5).requires_grad_(True)
    moved = encoder.functional(state, images)
    assert not torch.allclose(moved, features)
    moved.pow(3).sum().backward()
    assert state[name].grad.abs().sum() > 0
    torch.testing.assert_close(encoder(images), features)
    encoder.load({n: t.detach() for n, t in state.items()})
    torch.testing.assert_close(encoder(images), moved)


def test_functional_is_strict(encoder, images):
    state = dict(encoder.backbone.state_dict())
    first = next(iter(state))
    with pytest.raises(RuntimeError, match="misspelt"):
        encoder.functional({**state, "misspelt": state[first]}, images)
    del state[first]
    with pytest.raises(RuntimeError, match=first):
        encoder.functional(state, images)


@pytest.mark.filterwarnings("ignore:name='Tiny.* has .*GELU")  # see test_activation.py
@pytest.mark.parametrize("prefix", ["", "module.", "model.visual.", "encoder.backbone."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_load_restores_every_tensor(tmp_path, encoder, prefix, suffix):
    state = {n: torch.randn(t.shape).to(t.dtype) for n, t in encoder.backbone.state_dict().items()}
    stored = {prefix + name: tensor for name, tensor in state.items()}
    path = tmp_path / f"weights{suffix}"
    save_file(stored, path) if suffix == ".safetensors" else torch.save(stored, path)
    assert encoder.load(path) is encoder
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_batch_norm_stays_in_eval_unless_asked(images):
    encoder = build("resnet10t")
    before = {n: t.clone() for n, t in encoder.state_dict().items()}
    encoder.train()(images)
    assert encoder.backbone.training
    assert all(torch.equal(t, before[n]) for n, t in encoder.state_dict().items())
    encoder.update_statistics = True
    encoder.train()(images)
    assert not torch.equal(
        encoder.backbone.state_dict()["bn1.running_mean"], before["backbone.bn1.running_mean"]
    )


@pytest.mark.filterwarnings("ignore:name='Tiny.* has .*GELU")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", ["Tiny", "Tiny-quickgelu", "TinyResNet", "TinyCoCa"])
def test_open_clip_keeps_the_visual_tower_of_a_published_file(tmp_path, images, name, suffix):
    model = open_clip.create_model(name).eval()
    path = tmp_path / f"open_clip_model{suffix}"
    state = {n: t.contiguous() for n, t in model.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    encoder = OpenClipEncoder(name, weights=path)
    expected = model.encode_image(images, normalize=False)
    torch.testing.assert_close(encoder(images), expected, atol=0, rtol=0)
    assert set(encoder.backbone.state_dict()) == set(model.visual.state_dict())
    assert encoder.dim == 24


def test_quickgelu_changes_the_features(images):
    plain, quick = build("Tiny"), build("Tiny-quickgelu")
    quick.load(plain.backbone.state_dict())
    assert not torch.allclose(plain(images), quick(images))


@pytest.mark.shared
def test_open_clip_reads_the_published_key_layout(shared):
    config = open_clip.get_model_config("Tiny-quickgelu")
    config["vision_cfg"] |= {"layers": 4, "width": 64}
    visual = open_clip.CLIP(**{**config, "embed_dim": 32}).visual
    encoder = Encoder(visual, OpenClipEncoder("Tiny").preprocess, 32)
    file = shared / "fixtures" / "zoo" / "pretrained.safetensors"
    encoder.load(file)
    stored = load_file(file)
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, stored[f"model.visual.{name}"])


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B-32", "openai", r"name='ViT-B-32'.*pretrained='openai'.*name='ViT-B-32-quickgelu'"),
        ("ViT-L-14", "openai", "ViT-L-14-quickgelu"),
        ("ViT-B-23", None, "unknown name 'ViT-B-23'; did you mean.*ViT-B-32"),
        ("ViT-B-32", "laion2b", "unknown pretrained 'laion2b'; did you mean.*laion2b_s34b_b79k"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "Tags of ViT-B-32-quickgelu: openai"),
        ("Tiny", "weights.pt", "Tags of Tiny: none; pass a file as weights"),
    ],
)
def test_open_clip_refuses_names_that_do_not_fit(name, pretrained, message):
    with pytest.raises(InputError, match=message):
        OpenClipEncoder(name, pretrained)


def test_open_clip_tag_beside_weights_downloads_nothing(monkeypatch, tmp_path, images):
    model = open_clip.create_model("Tiny-quickgelu")
    torch.save(model.state_dict(), tmp_path / "expert.pt")
    tag = {"mean": (0.1, 0.2, 0.3), "resize_mode": "squash", "quick_gelu": True}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, pretrained: tag)
    weights = tmp_path / "expert.pt"
    encoder = OpenClipEncoder("Tiny-quickgelu", "tag", weights=weights)
    assert encoder.preprocess.mean == (0.1, 0.2, 0.3)
    assert encoder.preprocess.mode == "squash"
    torch.testing.assert_close(encoder(images), model.eval().encode_image(images))
    with pytest.raises(InputError, match="Tiny-quickgelu"):
        OpenClipEncoder("Tiny", "tag", weights=weights)


def test_open_clip_download_failure_has_a_remedy(monkeypatch):
    def offline(name, pretrained=None, **options):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(InputError, match=r"ViT-H-14.*no route to host.*weights"):
        OpenClipEncoder("ViT-H-14", "laion2b_s32b_b79k")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_timm_file_with_its_classifier(tmp_path, images, name):
    options = VIT if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=7, **options).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    file, layout = tmp_path / "model.safetensors", "contiguous"
    encoder = TimmEncoder(name, weights=file, options=options, memory_format=layout)
    expected = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(encoder(images), expected, atol=0, rtol=0)
    if options:
        assert encoder.preprocess.size == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet5O"}, "unknown name 'resnet5O'; did you mean.*resnet50"),
        ({"name": "resnet50.a1_in2k"}, r"resnet50\.a1_in2k.*resnet50\.a1_in1k"),
        ({"pretrained": True, "weights": "x.pt"}, "pretrained=True and weights=x.pt"),
        ({"name": "vit_tiny_patch16_224", "options": {"imgsize": 32}}, "imgsize.*options"),
    ],
)
def test_timm_refuses_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        TimmEncoder(**arguments)


@pytest.mark.parametrize("prefix", ["", "module.visual."])
def test_other_architectures_are_refused(prefix):
    encoder = build("Tiny")
    deep = {prefix + n: t for n, t in build("Tiny-deep").backbone.state_dict().items()}
    with pytest.raises(InputError, match=r"resblocks\.2\.ln_1\.bias is left over"):
        encoder.load(deep)
    state = encoder.backbone.state_dict()
    wide = {**state, "proj": torch.zeros(32, 25), "ln_pre.bias": torch.zeros(33)}
    with pytest.raises(InputError, match=r"proj has shape \[32, 25\] instead of \[32, 24\]") as e:
        encoder.load({prefix + n: t for n, t in wide.items()})
    assert "ln_pre.bias" in str(e.value)
    with pytest.raises(InputError, match=r"ln_post"):
        encoder.load({prefix + n: t for n, t in state.items() if "ln_post" not in n})


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        build("Tiny").load(tmp_path / "nowhere.safetensors")


def test_encoders_are_listed_with_one_line_each():
    class UsersOwn(Encoder):
        """A user's encoder.

        More.
        """

    listed = encoders()
    assert {"OpenClipEncoder", "TimmEncoder", "TransformersEncoder", "MiniViT"} <= set(listed)
    assert listed["UsersOwn"] == "A user's encoder."
    assert all(line.endswith(".") for line in listed.values())


def test_importing_models_imports_no_model_library():
    code = "import sys, lightning_merge.models; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    for library in ("open_clip", "timm", "transformers", "torchvision", "lightning", "sklearn"):
        assert library not in loaded


def test_backbone_is_an_ordinary_module(images):
    encoder = build("Tiny")
    state = encoder.backbone.state_dict()
    direct = functional_call(encoder.backbone, state, (images,), strict=True)
    torch.testing.assert_close(direct, encoder(images))


def test_only_options_that_name_files_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("resnet50", "clip", "weights.pt"):
        (tmp_path / name).mkdir()
    assert TimmEncoder.files({"name": "resnet50", "weights": "weights.pt"}) == ["weights.pt"]
    assert TimmEncoder.files({"name": "resnet50", "weights": "none.pt"}) == []
    options = {"source": "clip", "projection": None, "weights": "weights.pt"}
    assert TransformersEncoder.files(options) == ["clip", "weights.pt"]
