"""Files that describe models: they are followed as their own library does, or refused."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer, CLIPVisionConfig

from lightning_merge.core.errors import InputError, InputWarning
from lightning_merge.models import ImagePreprocess, TimmEncoder, TransformersEncoder

try:  # transformers 5 keeps its PIL pipeline under a name of its own
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
except ImportError:
    CLIPImageProcessorPil = CLIPImageProcessor

CROP = {"height": 32, "width": 32}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "patch_size": 16}
VISION |= {"num_attention_heads": 2, "image_size": 32, "projection_dim": 8}


@pytest.fixture
def pictures():
    """Pictures of several sizes: larger, smaller, and larger along one side only."""
    generator = np.random.default_rng(5)
    sizes = [(61, 40), (35, 48), (28, 27), (32, 32), (31, 91), (64, 17), (33, 33)]
    return [
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in sizes
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 1 / 127.5, "do_normalize": False},
        {"do_resize": False},
        {"do_resize": False, "crop_size": {"height": 29, "width": 29}},
        {"do_convert_rgb": False},
        {"do_center_crop": False, "size": {"height": 24, "width": 24}},
        {"size": {"height": 40, "width": 40}},
        {"size": {"shortest_edge": 25}},  # smaller than the crop: filled up with black
        {"size": 37, "crop_size": 30},
        {"size": [40, 40], "crop_size": [31, 31]},
        {"image_mean": [0.3, 0.4, 0.5], "image_std": [0.1, 0.2, 0.3]},
        {"use_square_size": True, "crop_size": CROP},
        *({"resample": number} for number in range(6)),
    ],
)
def test_images_are_those_of_transformers(pictures, options):
    processor = CLIPImageProcessorPil(
        **{"size": {"shortest_edge": 40}, "crop_size": CROP, **options}
    )
    for source in (
        processor.to_dict(),
        {"size": {"shortest_edge": 40}, "crop_size": CROP, **options},
    ):
        preprocess = ImagePreprocess.from_transformers(source)
        for picture in pictures:
            ours = preprocess.finish(preprocess.transform()(picture)[None])[0]
            theirs = torch.as_tensor(processor(picture)["pixel_values"][0]).float()
            torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=3e-6)


def test_null_and_nothing_are_the_defaults_of_the_class(pictures):
    """Transformers 4 takes null so; in 5 it ends in an error."""
    processor = CLIPImageProcessorPil()
    nothing = ImagePreprocess.from_transformers({})
    values = ("size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor")
    assert nothing == ImagePreprocess.from_transformers(dict.fromkeys(values))
    assert nothing == ImagePreprocess.from_transformers(processor.to_dict())
    theirs = torch.as_tensor(processor(pictures[0])["pixel_values"][0])
    ours = nothing.finish(nothing.transform()(pictures[0])[None])[0]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", {"longest_edge": 32}),
        ("size", {"shortest_edge": 32, "longest_edge": 64}),
        ("size", {"max_height": 32, "max_width": 32}),
        ("size", {"min_pixels": 9, "max_pixels": 99}),
        ("size", {"height": 32}),
        ("size", {"height": 32, "width": 40}),
        ("size", {"shortest_edge": "32"}),
        ("size", {}),
        ("size", "32"),
        ("size", 0),
        ("size", -3),
        ("size", 31.5),
        ("size", True),
        ("size", [32, 40]),
        ("size", [32, 32, 32]),
        ("size", 10**9),
        ("crop_size", {"shortest_edge": 32}),
        ("crop_size", {"height": 32, "width": 24}),
        ("crop_size", [None, None]),
        ("resample", 6),
        ("resample", "bicubic"),
        ("resample", [3]),
        ("resample", True),
        ("image_mean", [0.5] * 4),
        ("image_mean", []),
        ("image_mean", ["0.5"] * 3),
        ("image_mean", "0.5"),
        ("image_std", [0.5, 0, 0.5]),
        ("image_std", [float("nan")] * 3),
        ("do_resize", "no"),
        ("do_normalize", 0),
        ("do_normalize", None),  # false to transformers, though true is the default
        ("do_center_crop", False),  # of a resized shortest side: images of many sizes
        ("do_pad", True),
        ("rescale_factor", 0),
        ("rescale_factor", "1/255"),
        ("image_processor_type", "ViTImageProcessor"),
        ("feature_extractor_type", "OwlViTFeatureExtractor"),
    ],
)
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_what_cannot_be_followed_is_named(folder, name, key, value):
    content = {"crop_size": 32, "size": 32, key: value}
    content = {"image_processor": content} if name == "processor_config.json" else content
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        TransformersEncoder(folder)
    told = str(caught.value)
    outer = value if isinstance(value, str) or not isinstance(value, dict) else key
    assert f"{folder / name}" in told
    assert key in told or str(value) in told
    assert str(outer) in told or repr(value) in told


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return TransformersEncoder(VISION).backbone.state_dict()


@pytest.fixture
def folder(tmp_path, weights):
    """Publish a tower without a description of its images."""
    save_file(weights, tmp_path / "model.safetensors")
    config = {"model_type": "clip_vision_model", **VISION}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_what_transformers_saves_is_read(folder, pictures):
    """CLIPProcessor writes one file in transformers 5, and another one before."""
    tokens = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    images = CLIPImageProcessor(size=36, crop_size=32, image_mean=[0.2] * 3, resample=2)
    tokenizer = CLIPTokenizer(vocab=tokens, merges=[])
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    found = TransformersEncoder(folder).preprocess
    assert (found.resize, found.size, found.interpolation) == (36, 32, "bilinear")
    assert found.mean == (0.2, 0.2, 0.2)


@pytest.mark.parametrize(
    ("old", "new", "mean"),
    [
        (0.1, None, 0.1),
        (None, 0.2, 0.2),
        (0.1, 0.2, 0.2),  # as transformers 5 takes them
        (0.1, 0.1, 0.1),
        (0.1, "no image_processor", 0.1),
        (None, "no image_processor", 0.48145466),
    ],
)
def test_of_two_files_the_newer_kind_is_followed(folder, old, new, mean):
    fields = {"crop_size": 32, "size": 32}
    if old is not None:
        content = json.dumps({**fields, "image_mean": [old] * 3})
        (folder / "preprocessor_config.json").write_text(content)
    if new is not None:
        nested = {"image_processor": {**fields, "image_mean": [new] * 3}}
        nested = nested if isinstance(new, float) else {"processor_class": "CLIPProcessor"}
        (folder / "processor_config.json").write_text(json.dumps(nested))
    differ = isinstance(new, float) and old not in (None, new)
    told = pytest.warns(InputWarning, match="processor_config.json prepare images differently")
    with told if differ else nullcontext():
        assert TransformersEncoder(folder).preprocess.mean[0] == mean


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "processor_config.json"]
)
@pytest.mark.parametrize(
    "content",
    [b"", b" ", b'{"size": 32,', b"[]", b"null", b"7", b'"text"', b"\xff\xfe{", b"{" * 100_000],
)
def test_broken_files_are_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"/{name} (is not JSON|holds .* instead of fields)"):
        TransformersEncoder(folder)


def test_a_byte_order_mark_is_no_fault(folder):
    content = json.dumps({"crop_size": 32, "size": 36})
    (folder / "preprocessor_config.json").write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert TransformersEncoder(folder).preprocess.resize == 36


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "model_type=None"),
        ({"model_type": "siglip"}, "model_type='siglip'"),
        ({"hidden_size": "16"}, "hidden_size='16': give a whole number"),
        ({"hidden_size": 16.5}, "hidden_size=16.5"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"num_attention_heads": 3}, "num_attention_heads=3: it must divide hidden_size=16"),
        ({"image_size": [32, 48]}, r"image_size=\[32, 48\]: only square"),
        ({"patch_size": 64}, "patch_size=64: an image has 32 pixels"),
        ({"hidden_act": "sqrelu"}, "hidden_act='sqrelu': give one of .*quick_gelu"),
        ({"hidden_act": ["gelu"]}, r"hidden_act=\['gelu'\]"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps='tiny': give a number"),
        ({"num_channels": 1}, "num_channels=1: images have three colours"),
        ({"model_type": "clip", "vision_config": [1]}, r"vision_config=\[1\]"),
        (
            {"model_type": "clip", "vision_config": {**VISION, "hidden_size": "x"}},
            "hidden_size='x'",
        ),
    ],
)
def test_a_config_that_is_wrong_is_named(folder, changes, message):
    config = {"model_type": "clip_vision_model", **VISION, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"config\.json.*{message}"):
        TransformersEncoder(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "clip_vision_model", **VISION, "hidden_act": None, "layer_norm_eps": None},
        {
            "model_type": "clip_vision_model",
            **VISION,
            "image_size": [32, 32],
            "attention_dropout": 0,
        },
        {"model_type": "clip_vision_model", **VISION, "num_channels": None, "projection_dim": None},
        {"model_type": "clip", "vision_config": VISION},
        {"model_type": "clip", "vision_config": {}, "vision_config_dict": VISION},
        {"model_type": "clip", "vision_config": VISION, "vision_config_dict": None},
    ],
)
def test_unusual_configs_are_those_of_transformers(folder, weights, images, config):
    (folder / "config.json").write_text(json.dumps(config))
    encoder = TransformersEncoder(folder)
    expected = TransformersEncoder({**VISION, "hidden_act": CLIPVisionConfig().hidden_act})
    torch.testing.assert_close(encoder(images), expected.load(weights)(images))


def test_images_of_another_size_than_the_models_are_refused(folder):
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 32, "crop_size": None}))
    with pytest.raises(InputError, match=r"images of 224 pixels .* image_size=32"):
        TransformersEncoder(folder)


def test_a_misspelt_field_of_a_tower_is_refused():
    with pytest.raises(InputError, match=r"unknown source 'hiden_size'; did you mean hidden_size"):
        TransformersEncoder({**VISION, "hiden_size": 8})


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"architecture": null}',
        '{"architecture": "resnet10t", "pretrained_cfg": {"std": "x"}}',
        '{"architecture": "resnet10t", "pretrained_cfg": {"input_size": [3, 32, 48]}}',
    ],
)
def test_broken_folders_of_timm(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError):
        TimmEncoder(f"local-dir:{tmp_path}")
