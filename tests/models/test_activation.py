"""GELU or QuickGELU: the same tensors fit both, so what tells them apart is looked for."""

import json

import open_clip
import pytest
import timm
import torch
from published import publish
from safetensors.torch import save_file
from tiny_clips import TOWER_CONFIG, VISION, ImageEncoder, hub_folder, scripted
from transformers import CLIPVisionConfig, CLIPVisionModel

from lightning_merge.cli.main import main
from lightning_merge.core.checkpoints.activation import activation_of
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.errors import InputError, InputWarning
from lightning_merge.models import (
    OpenClipEncoder,
    TimmEncoder,
    TransformersEncoder,
    zero_shot_heads,
)

MODELS = {"gelu": "Tiny", "quick_gelu": "Tiny-quickgelu"}
OTHER = {"gelu": "quick_gelu", "quick_gelu": "gelu"}


def visual(kind):
    return open_clip.create_model(MODELS[kind])


def of_pickle(kind, folder):
    return publish(ImageEncoder(visual(kind)), folder / "zeroshot.pt")


def of_old_pickle(kind, folder):
    return publish(ImageEncoder(visual(kind)), folder / "old.pt", legacy=True)


def of_metadata(kind, folder):
    state = visual(kind).visual.state_dict()
    return str(save_checkpoint(state, folder / "x.safetensors", metadata={"activation": kind}))


def of_config(kind, folder):
    tower = {"model_type": "clip_vision_model", "hidden_act": kind}
    return hub_folder(visual(kind).visual.state_dict(), folder / "tower", tower)


def of_whole_config(kind, folder):
    config = {"model_type": "clip", "vision_config": {"hidden_act": kind}}
    return hub_folder(visual(kind).visual.state_dict(), folder / "whole", config)


def of_open_clip_config(kind, folder):
    place = hub_folder(visual(kind).visual.state_dict(), folder / "theirs", {})
    content = {"model_cfg": {"quick_gelu": True} if kind == "quick_gelu" else {"embed_dim": 24}}
    (folder / "theirs" / "open_clip_config.json").write_text(json.dumps(content))
    return place


TELLING = [of_pickle, of_old_pickle, of_metadata, of_config, of_whole_config, of_open_clip_config]


def of_state_dict(kind, folder):
    torch.save(visual(kind).state_dict(), folder / "state.pt")
    return str(folder / "state.pt")


def of_safetensors(kind, folder):
    save_file(visual(kind).visual.state_dict(), folder / "plain.safetensors")
    return str(folder / "plain.safetensors")


def of_no_suffix(kind, folder):
    save_file(visual(kind).visual.state_dict(), folder / "plain")
    return str(folder / "plain")


def of_index(kind, folder):
    state = visual(kind).visual.state_dict()
    save_file(state, folder / "shard.safetensors")
    index = {"weight_map": dict.fromkeys(state, "shard.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder / "model.safetensors.index.json")


def of_plain_folder(kind, folder):
    return hub_folder(visual(kind).visual.state_dict(), folder / "plain", {"hidden_act": 7})


SILENT = [of_state_dict, of_safetensors, of_no_suffix, of_index, of_plain_folder]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("form", TELLING)
def test_what_a_file_says_settles_it(tmp_path, form, kind):
    file = form(kind, tmp_path)
    assert activation_of(file) == kind
    encoder = OpenClipEncoder(MODELS[kind], weights=file)
    assert encoder.described == {"activation": kind}
    words = {"gelu": "GELU", "quick_gelu": "QuickGELU"}
    told = rf"name='{MODELS[OTHER[kind]]}' has {words[OTHER[kind]]}, but .* with {words[kind]}: "
    with pytest.raises(InputError, match=told + f"use name='{MODELS[kind]}'"):
        OpenClipEncoder(MODELS[OTHER[kind]], weights=file)
    with pytest.raises(InputError, match=told):
        OpenClipEncoder(MODELS[OTHER[kind]]).load(file)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("form", SILENT)
def test_where_nothing_says_it_a_warning_does(tmp_path, monkeypatch, form, kind):
    file = form(kind, tmp_path)
    assert activation_of(file) is None
    told = rf"name='{MODELS[kind]}' has .*GELU, .*fit name='{MODELS[OTHER[kind]]}', too.*pretrained"
    with pytest.warns(InputWarning, match=told):
        OpenClipEncoder(MODELS[kind], weights=file)
    with pytest.warns(InputWarning, match=told):
        OpenClipEncoder(MODELS[kind]).load(file)
    tag = {"quick_gelu": kind == "quick_gelu", "resize_mode": "shortest"}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, pretrained: tag)
    OpenClipEncoder(MODELS[kind], "tag", weights=file)  # says nothing, as warnings are errors


def test_weights_in_memory_are_the_callers_own(images):
    """And the two models differ, or all this would be for nothing."""
    plain, quick = OpenClipEncoder("Tiny"), OpenClipEncoder("Tiny-quickgelu")
    quick.load(plain.backbone.state_dict())
    assert not torch.allclose(plain(images), quick(images), atol=1e-3)


def test_an_archive_of_openai_says_it(tmp_path):
    model = visual("quick_gelu")
    file = scripted("Tiny-quickgelu", model.state_dict(), tmp_path / "ViT.pt")
    assert activation_of(file) == "quick_gelu"
    OpenClipEncoder("Tiny-quickgelu", weights=file)
    with pytest.raises(InputError, match="use name='Tiny-quickgelu'"):
        OpenClipEncoder("Tiny", weights=file)


def test_resnets_of_clip_have_neither(tmp_path):
    torch.save(open_clip.create_model("TinyResNet").state_dict(), tmp_path / "x.pt")
    encoder = OpenClipEncoder("TinyResNet", weights=tmp_path / "x.pt")
    assert encoder.activation is None
    assert encoder.described == {}


def test_one_model_alone_leaves_no_doubt(tmp_path):
    torch.save(open_clip.create_model("Tiny-deep").state_dict(), tmp_path / "x.pt")
    assert OpenClipEncoder("Tiny-deep", weights=tmp_path / "x.pt").activation.other == ""


@pytest.mark.parametrize("form", [of_state_dict, of_metadata])
def test_the_text_tower_is_held_to_the_same(tmp_path, form):
    tasks = {"pets": (["cat", "dog"], ["a photo of a {}."])}
    if form is of_state_dict:
        with pytest.warns(InputWarning, match=r"name='Tiny' has GELU.*fit name='Tiny-quickgelu'"):
            zero_shot_heads(tasks, "Tiny", weights=form("gelu", tmp_path))
        return
    with pytest.raises(InputError, match="use name='Tiny-quickgelu'"):
        zero_shot_heads(tasks, "Tiny", weights=form("quick_gelu", tmp_path))


@pytest.mark.parametrize("kind", MODELS)
def test_transformers_says_it_in_its_config(tmp_path, kind):
    def tower(act):
        model = CLIPVisionModel(CLIPVisionConfig(**{**VISION, "hidden_act": act}))
        config = {**TOWER_CONFIG, "hidden_act": act}
        return hub_folder(model.state_dict(), tmp_path / act, config)

    own, other = tower(kind), tower(OTHER[kind])
    encoder = TransformersEncoder(own)
    assert encoder.described == {"activation": kind}
    with pytest.raises(InputError, match=rf"source=.*{kind} has .*weights=.*{OTHER[kind]} were"):
        encoder.load(other)
    encoder.load(f"{other}/model.safetensors")  # which says nothing by itself


TOWER = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_base_patch32_clip_224", r"has GELU.*fit name='vit_base_patch32_clip_quickgelu_224'"),
        ("vit_base_patch32_clip_quickgelu_224", r"has QuickGELU.*'vit_base_patch32_clip_224'"),
        (
            "vit_base_patch32_clip_224.openai",
            "GELU, though .*vit_base_patch32_clip_quickgelu_224.openai",
        ),
        ("vit_base_patch32_clip_quickgelu_224.openai", None),
        ("vit_base_patch32_clip_224.laion2b", None),
        ("vit_tiny_patch16_224", None),
    ],
)
def test_towers_of_timm(tmp_path, name, message):
    model = timm.create_model(name.split(".")[0], num_classes=0, **TOWER)
    save_file(model.state_dict(), tmp_path / "x.safetensors")

    def build():
        return TimmEncoder(name, weights=tmp_path / "x.safetensors", options=TOWER)

    if message is None:
        build()
    else:
        with pytest.warns(InputWarning, match=message):
            build()


def test_timm_refuses_what_was_written_with_the_other(tmp_path):
    model = timm.create_model("vit_base_patch32_clip_quickgelu_224", num_classes=0, **TOWER)
    metadata = {"activation": "quick_gelu"}
    file = save_checkpoint(model.state_dict(), tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(InputError, match="use name='vit_base_patch32_clip_quickgelu_224'"):
        TimmEncoder("vit_base_patch32_clip_224", weights=file, options=TOWER)


@pytest.mark.parametrize(("first", "second"), [("gelu", "gelu"), ("gelu", "quick_gelu")])
def test_merge_keeps_it_and_mixes_none(tmp_path, capsys, first, second):
    places = []
    for number, kind in enumerate((first, second)):
        (tmp_path / str(number)).mkdir()
        places.append(of_pickle(kind, tmp_path / str(number)))
    base = of_state_dict("gelu", tmp_path)
    state = {n: t for n, t in torch.load(base).items() if not n.startswith("transformer.")}
    torch.save({f"model.{n}": t for n, t in state.items()}, base)
    output = tmp_path / "merged.safetensors"
    words = ["merge", "--base", base, "--experts.a", places[0], "--experts.b", places[1]]
    code = main([*words, "--output", str(output), "--method", "Average"])
    if first == second:
        assert code == 0, capsys.readouterr().err
        assert open_checkpoint(output).metadata["activation"] == first
    else:
        assert code == 2
        assert "expert/a gelu, expert/b quick_gelu" in capsys.readouterr().err
