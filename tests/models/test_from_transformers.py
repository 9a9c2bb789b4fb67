import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from transformers.utils import logging

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.errors import InputError
from lightning_merge.models import TransformersEncoder

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2}
VISION = {**SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 16}
TEXT = {**SMALL, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "projection_dim": 16}


@pytest.fixture(autouse=True)
def _silence():
    logging.disable_progress_bar()


@pytest.fixture
def base(tmp_path):
    """Publish a CLIPModel as openai/clip-vit-base-patch32 is published."""
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "base")
    CLIPImageProcessor(size=36, crop_size=32).save_pretrained(tmp_path / "base")
    return tmp_path / "base", model


@pytest.fixture
def expert(tmp_path):
    """Publish a CLIPVisionModel as tanganke/clip-vit-base-patch32_sun397 is published."""
    model = CLIPVisionModel(CLIPVisionConfig(**VISION)).eval()
    model.save_pretrained(tmp_path / "expert")
    file = tmp_path / "expert" / "model.safetensors"
    stored = load_file(file)
    if not all(name.startswith("vision_model.") for name in stored):  # as transformers 4 wrote
        save_file({f"vision_model.{n}": t for n, t in stored.items()}, file)
    return tmp_path / "expert", model


def embedded(model: CLIPModel, images):
    return model(
        pixel_values=images, input_ids=torch.tensor([[1, 2]]), attention_mask=torch.ones(1, 2)
    ).image_embeds


def test_expert_gives_the_pooled_output(expert, images):
    folder, model = expert
    encoder = TransformersEncoder(folder)
    expected = model(pixel_values=images).pooler_output
    torch.testing.assert_close(encoder(images), expected, atol=0, rtol=0)
    assert encoder.dim == 32
    assert encoder.preprocess.size == 32
    assert set(encoder.backbone.state_dict()) == set(load_file(folder / "model.safetensors"))


def test_base_gives_projected_features(base, images):
    folder, model = base
    encoder = TransformersEncoder(folder)
    unit = torch.nn.functional.normalize(encoder(images), dim=-1)
    torch.testing.assert_close(unit, embedded(model, images))
    assert encoder.dim == 16
    assert (encoder.preprocess.resize, encoder.preprocess.size) == (36, 32)


def test_expert_in_base_equals_expert_with_the_bases_projection(base, expert, images):
    (base_folder, model), (expert_folder, tower) = base, expert
    loaded = TransformersEncoder(base_folder).load(expert_folder)
    named = TransformersEncoder(expert_folder, projection=base_folder)
    swapped = TransformersEncoder(base_folder, weights=expert_folder / "model.safetensors")
    expected = model.visual_projection(tower(pixel_values=images).pooler_output)
    for encoder in (loaded, named, swapped):
        torch.testing.assert_close(encoder(images), expected)
        state = encoder.backbone.state_dict()
        torch.testing.assert_close(encoder.functional(state, images), expected)


@pytest.mark.parametrize("model_class", [CLIPVisionModel, CLIPVisionModelWithProjection])
def test_files_of_the_installed_transformers_load(tmp_path, images, model_class):
    model = model_class(CLIPVisionConfig(**VISION)).eval()
    model.save_pretrained(tmp_path)
    encoder = TransformersEncoder(tmp_path)
    output = model(pixel_values=images)
    expected = output.image_embeds if "image_embeds" in output else output.pooler_output
    torch.testing.assert_close(encoder(images), expected)


def test_old_files_hold_position_indices_and_pickles(tmp_path, expert, images):
    folder, model = expert
    stored = load_file(folder / "model.safetensors")
    stored["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    (folder / "model.safetensors").unlink()
    torch.save(stored, folder / "pytorch_model.bin")
    encoder = TransformersEncoder(folder)
    torch.testing.assert_close(encoder(images), model(pixel_values=images).pooler_output)


def test_saved_backbone_goes_back_into_transformers(expert, images):
    folder, _ = expert
    encoder = TransformersEncoder(VISION)
    save_file(encoder.backbone.state_dict(), folder / "model.safetensors", {"format": "pt"})
    back = CLIPVisionModel.from_pretrained(folder).eval()
    torch.testing.assert_close(back(pixel_values=images).pooler_output, encoder(images))


def test_repositories_are_fetched_once_from_the_hub(monkeypatch, expert, images):
    import huggingface_hub

    folder, model = expert
    asked = []

    def snapshot_download(repository, revision, allow_patterns):
        asked.append((repository, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    hub._fetched.cache_clear()
    encoder = TransformersEncoder("tanganke/clip-vit-base-patch32_sun397")
    torch.testing.assert_close(encoder(images), model(pixel_values=images).pooler_output)
    names = {repository for repository, _ in asked}
    assert names == {"tanganke/clip-vit-base-patch32_sun397"}
    assert len(asked) == 1
    assert set(asked[0][1]) == {*hub.COMPANIONS, "model.safetensors*", "model-*-of-*.safetensors"}
    hub._fetched.cache_clear()


def test_bad_sources(monkeypatch, tmp_path, expert):
    folder, _ = expert
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"source='nobody/nothing'.*the Hub cannot be reached"):
        TransformersEncoder("nobody/nothing")
    with pytest.raises(InputError, match=r"no/such/folder.*not a local folder"):
        TransformersEncoder("no/such/folder")
    with pytest.raises(InputError, match=r"no config\.json"):
        TransformersEncoder(tmp_path)
    with pytest.raises(InputError, match=r"projection=.*visual_projection"):
        TransformersEncoder(folder, projection=folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    with pytest.raises(InputError, match="model_type='vit'"):
        TransformersEncoder(folder)


def test_deeper_weights_are_refused(expert):
    shallow = TransformersEncoder({**VISION, "num_hidden_layers": 1})
    with pytest.raises(InputError, match=r"encoder\.layers\.1\..* is left over"):
        shallow.load(expert[0])
