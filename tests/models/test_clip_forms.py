"""Every published form of one CLIP goes into either kind of encoder."""

import pytest
import torch
from tiny_clips import (
    CONFIG,
    TOWER_CONFIG,
    both,
    hub_folder,
    moved,
    pickled,
    register,
    scripted,
)

from lightning_merge.core.checkpoints.checkpoint import save_checkpoint, spelled_as
from lightning_merge.core.errors import InputError, InputWarning
from lightning_merge.models import OpenClipEncoder, TransformersEncoder, zero_shot_heads

PROMPTS = {"pets": (["cat", "tree frog", "red car"], ["a photo of a {}."])}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base in every form of a whole CLIP, and an expert in every form of a tower."""
    folder = tmp_path_factory.mktemp("clips")
    name = register(folder)
    ours, theirs = both(name)
    state = {n: t.half().float() for n, t in ours.state_dict().items()}  # exact in half precision
    ours.load_state_dict(state)
    other = {n: t for n, t in spelled_as(state, theirs.state_dict()).items()}
    expert = moved(state, 1, ("visual.",))
    expert["visual.proj"] = state["visual.proj"]  # as where it was frozen
    own = {n.removeprefix("visual."): t for n, t in expert.items() if n.startswith("visual.")}
    tower = spelled_as(expert, theirs.state_dict())
    tower = {n: tower[n] for n in tower if n.startswith("vision_model.")}
    torch.save(state, folder / "open_clip.bin")
    found = {
        "name": name,
        "folder": folder,
        "model": ours,
        "bases": {
            "open_clip's .bin": str(folder / "open_clip.bin"),
            "OpenAI's archive": scripted(name, state, folder / "archive.pt"),
            "Hub folder": hub_folder(other, folder / "hub", CONFIG),
            "pickle": pickled(name, state, folder / "zeroshot.pt"),
        },
        "experts": {
            "pickle": pickled(name, expert, folder / "finetuned.pt"),
            "Hub folder": hub_folder(tower, folder / "tower", TOWER_CONFIG),
            "ours": str(save_checkpoint(own, folder / "ours.safetensors")),
            "of transformers 5": str(save_checkpoint(
                {n.removeprefix("vision_model."): t for n, t in tower.items()},
                folder / "five.safetensors",
            )),
        },
        "expert": expert,
    }  # fmt: skip
    return found


def encoder_of(kind, made, base):
    if kind == "open_clip":
        return OpenClipEncoder(made["name"], weights=made["bases"][base])
    hub = made["bases"]["Hub folder"]  # it describes the architecture
    return TransformersEncoder(hub, weights=made["bases"][base])


FORMS = ["open_clip's .bin", "OpenAI's archive", "Hub folder", "pickle"]


@pytest.mark.parametrize("kind", ["open_clip", "transformers"])
@pytest.mark.parametrize("base", FORMS)
@pytest.mark.parametrize("expert", ["pickle", "Hub folder", "ours", "of transformers 5"])
def test_either_encoder_takes_every_form(made, images, kind, base, expert):
    encoder = encoder_of(kind, made, base)
    with torch.no_grad():
        expected = made["model"].encode_image(images)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-5)
        encoder.load(made["experts"][expert])
        before = made["model"].state_dict()
        state = {name: tensor.clone() for name, tensor in before.items()}
        made["model"].load_state_dict(made["expert"])
        tuned = made["model"].encode_image(images)
        made["model"].load_state_dict(state)
    torch.testing.assert_close(encoder(images), tuned, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(tuned, expected, rtol=1e-3, atol=1e-3)


def test_a_tower_without_projection_needs_one(made):
    tower = made["experts"]["Hub folder"]
    with pytest.raises(InputError, match=r"without its visual_projection.*whole CLIP"):
        OpenClipEncoder(made["name"], weights=tower)
    with pytest.raises(InputError, match="visual_projection"):
        OpenClipEncoder(made["name"]).load(tower)


def test_the_projection_is_that_of_the_weights_the_encoder_was_built_from(made, images):
    """Whatever was loaded in between: no file gets another one's projection."""
    encoder = OpenClipEncoder(made["name"], weights=made["bases"]["Hub folder"])
    encoder.load(made["experts"]["Hub folder"])
    expected = encoder(images)
    other = {n: 2 * t for n, t in encoder.backbone.state_dict().items()}
    encoder.load(other).load(made["experts"]["Hub folder"])
    assert torch.equal(encoder(images), expected)


def test_a_projection_that_is_left_out_is_told(made, tmp_path):
    tuned = moved(made["expert"], 5, ("visual.proj",))
    file = pickled(made["name"], tuned, tmp_path / "tuned.pt")
    encoder = TransformersEncoder(made["bases"]["Hub folder"])
    with pytest.warns(InputWarning, match=r"tuned\.pt: its visual projection differs"):
        encoder.load(file)


def test_deeper_towers_of_the_other_library_are_refused(made, tmp_path):
    shallow = register(tmp_path, layers=1)
    with pytest.raises(InputError, match=r"resblocks\.1\..* is left over"):
        OpenClipEncoder(shallow, weights=made["bases"]["Hub folder"])


@pytest.mark.parametrize("form", FORMS[:3])  # the pickle has no text transformer
def test_the_text_tower_comes_from_every_form(made, form):
    heads = zero_shot_heads(PROMPTS, made["name"], weights=made["bases"][form])
    expected = zero_shot_heads(PROMPTS, made["name"], weights=made["bases"]["open_clip's .bin"])
    torch.testing.assert_close(heads["pets"].weight, expected["pets"].weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(heads["pets"].scale, expected["pets"].scale)


def test_a_text_tower_alone_is_enough(made, tmp_path):
    whole = {
        name: tensor
        for name, tensor in made["model"].state_dict().items()
        if not name.startswith("visual.")
    }
    file = save_checkpoint(whole, tmp_path / "text.safetensors")
    heads = zero_shot_heads(PROMPTS, made["name"], weights=file)
    expected = zero_shot_heads(PROMPTS, made["name"], weights=made["bases"]["open_clip's .bin"])
    assert torch.equal(heads["pets"].weight, expected["pets"].weight)


def test_a_text_tower_that_was_deleted_is_named(made):
    with pytest.raises(
        InputError, match=r"zeroshot\.pt has no text tower of TinyBoth2.*whole CLIP"
    ):
        zero_shot_heads(PROMPTS, made["name"], weights=made["bases"]["pickle"])


@pytest.mark.parametrize("form", FORMS)
def test_a_projection_comes_from_every_form(made, images, form):
    tower = made["experts"]["Hub folder"]
    encoder = TransformersEncoder(tower, projection=made["bases"][form])
    expected = TransformersEncoder(tower, projection=made["bases"]["Hub folder"])
    torch.testing.assert_close(encoder(images), expected(images), rtol=1e-4, atol=1e-5)
