"""One CLIP under both libraries' names: translated weights do in one what they do in the other."""

import pytest
import torch
from tiny_clips import both, register

from lightning_merge.core.checkpoints.checkpoint import (
    as_checkpoint,
    save_checkpoint,
    select,
    spelled_as,
)
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint as opened
from lightning_merge.core.errors import InputError

TOKENS = torch.zeros(2, 77, dtype=torch.long)
TOKENS[0, :4] = torch.tensor([49406, 5, 6, 49407])
TOKENS[1, :3] = torch.tensor([49406, 7, 49407])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return both(register(tmp_path_factory.mktemp("configs")))


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def embeddings(model, images):
    """Image and text embeddings of norm 1, and what cosines are multiplied by."""
    scale = model.logit_scale.detach()
    with torch.no_grad():
        if hasattr(model, "encode_image"):
            unit = {"normalize": True}
            return model.encode_image(images, **unit), model.encode_text(TOKENS, **unit), scale
        found = model(pixel_values=images, input_ids=TOKENS)
        return found.image_embeds, found.text_embeds, scale


@pytest.mark.parametrize("source", [0, 1])
@pytest.mark.parametrize("prefix", ["", "model.", "module.clip."])
def test_translated_weights_give_the_same_features(models, images, source, prefix):
    given, other = models[source], models[1 - source]
    stored = {prefix + name: tensor for name, tensor in given.state_dict().items()}
    wanted = other.state_dict()
    before = {name: tensor.clone() for name, tensor in wanted.items()}
    found = select(stored, wanted)
    assert list(found) == list(wanted)
    other.load_state_dict({name: found[name] for name in found})
    for one, two in zip(embeddings(given, images), embeddings(other, images), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    other.load_state_dict(before)


@pytest.mark.parametrize("source", [0, 1])
def test_there_and_back_is_the_same_to_the_bit(models, source):
    state, other = models[source].state_dict(), models[1 - source].state_dict()
    there = spelled_as(state, other)
    assert set(there) == set(other)
    back = spelled_as(there, state)
    assert set(back) == set(state)
    for name, tensor in state.items():
        assert back.shape(name) == tuple(tensor.shape)
        assert back.dtype(name) == tensor.dtype
        assert torch.equal(back[name], tensor)


@pytest.mark.parametrize("source", [0, 1])
@pytest.mark.parametrize("stored_in", ["memory", "file"])
def test_runs_of_elements_are_those_of_the_tensor(tmp_path, models, source, stored_in):
    state, other = models[source].state_dict(), models[1 - source].state_dict()
    if stored_in == "file":
        state = opened(save_checkpoint(state, tmp_path / "x.safetensors"))
    found = spelled_as(state, other)
    for name in found:
        flat = found[name].reshape(-1)
        size = len(flat)
        for start, stop in {(0, size), (size // 3, 2 * size // 3 + 1), (size - 1, size), (0, 0)}:
            out = torch.empty(stop - start, dtype=torch.float64)
            found.read_into(name, start, out)
            assert torch.equal(out, flat[start:stop].double()), name
    found.check_unchanged()
    if stored_in == "file":
        save_checkpoint({"other": torch.zeros(1)}, tmp_path / "x.safetensors")
        with pytest.raises(InputError, match="changed while it was in use"):
            found.check_unchanged()


def test_towers_alone_have_the_level_of_their_name_or_not(models):
    """Encoders of ours and transformers 5 store a tower without, published files with it."""
    ours, theirs = (model.state_dict() for model in models)
    bare = {n.removeprefix("visual."): t for n, t in ours.items() if n.startswith("visual.")}
    level = {n: t for n, t in theirs.items() if n.startswith("vision_model.")}
    short = {n.removeprefix("vision_model."): t for n, t in level.items()}
    for wanted in (level, short):
        assert set(select(bare, wanted)) == set(wanted)
    projection = {"visual_projection.weight": theirs["visual_projection.weight"]}
    assert set(select({**level, **projection}, bare)) == set(bare)
    assert set(select({**short, **projection}, bare)) == set(bare)
    with pytest.raises(InputError, match=r"1 of .* missing.*proj"):
        select(level, bare)


def test_newer_models_of_open_clip_keep_the_text_tower_in_a_level(models):
    ours, theirs = (model.state_dict() for model in models)
    level = {n if n.startswith(("visual.", "logit")) else f"text.{n}": t for n, t in ours.items()}
    assert set(select(theirs, level)) == set(level)
    found = select(level, theirs)
    assert torch.equal(found["text_projection.weight"], ours["text_projection"].T)


def test_attention_lies_in_the_order_of_queries_keys_values(models):
    ours, theirs = (model.state_dict() for model in models)
    found = spelled_as(theirs, ours)["visual.transformer.resblocks.1.attn.in_proj_bias"]
    place = "vision_model.encoder.layers.1.self_attn"
    parts = [theirs[f"{place}.{letter}_proj.bias"] for letter in "qkv"]
    assert torch.equal(found, torch.cat(parts))


def test_parts_of_several_types_are_read_as_the_wider_one(models):
    ours, theirs = (model.state_dict() for model in models)
    key = "vision_model.encoder.layers.0.self_attn.k_proj.weight"
    found = spelled_as({**theirs, key: theirs[key].half()}, ours)
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    assert found.dtype(name) == found[name].dtype == torch.float32


def test_tied_parts_stay_tied(models):
    ours, theirs = (dict(model.state_dict()) for model in models)
    one, two = "vision_model.pre_layrnorm.bias", "vision_model.post_layernorm.bias"
    theirs[two] = theirs[one]
    assert spelled_as(theirs, ours).ties() == [("visual.ln_pre.bias", "visual.ln_post.bias")]


@pytest.mark.parametrize(
    "names",
    [
        ["encoder.layers.0.self_attn.q_proj.weight", "embeddings.word.weight"],
        ["visual.trunk.blocks.0.attn.qkv.weight", "visual.head.proj.weight"],
        ["transformer.h.0.attn.c_attn.weight"],
    ],
)
def test_other_networks_are_left_alone(models, names):
    stored = as_checkpoint(dict.fromkeys(names, torch.zeros(3)))
    for model in models:
        assert spelled_as(stored, model.state_dict()) is stored
        assert spelled_as(model.state_dict(), names).path is None
        assert set(spelled_as(model.state_dict(), names)) == set(model.state_dict())


def test_an_incomplete_attention_is_not_made_up(models):
    ours, theirs = (dict(model.state_dict()) for model in models)
    del theirs["vision_model.encoder.layers.0.self_attn.v_proj.weight"]
    with pytest.raises(InputError, match=r"resblocks\.0\.attn\.in_proj_weight"):
        select(theirs, ours)
