"""Another size of images than a network's own: who takes it, and what is refused in one line."""

import json

import open_clip
import pytest
import timm
import torch
from PIL import Image

from lightning_merge.core.errors import InputError
from lightning_merge.models import (
    ImagePreprocess,
    MiniResNet,
    MiniViT,
    OpenClipEncoder,
    TimmEncoder,
    TransformersEncoder,
)

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
HF = {"hidden_size": 32, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
HF |= {"num_hidden_layers": 2, "num_attention_heads": 2}


def timm_vit(image_size=None):
    return TimmEncoder("vit_tiny_patch16_224", options=VIT, image_size=image_size)


def test_a_convolutional_network_takes_any_size():
    encoder = TimmEncoder("resnet10t", image_size=40)
    assert encoder.preprocess.size == 40
    assert encoder.preprocess.transform()(Image.new("RGB", (90, 61))).shape == (3, 40, 40)
    images = torch.randn(2, 3, 40, 40)
    model = timm.create_model("resnet10t", num_classes=0).eval()
    model.load_state_dict(encoder.backbone.state_dict())
    torch.testing.assert_close(encoder(images), model(images))


def test_nothing_is_cropped_off_small_images():
    picture = Image.new("RGB", (32, 32))
    picture.putpixel((0, 0), (255, 255, 255))
    own = TimmEncoder("resnet10t").preprocess
    assert own.resize > own.size  # a margin to crop
    assert own.at(32).transform()(picture)[:, 0, 0].tolist() == [255, 255, 255]
    assert own.at(None) is own
    kept = ImagePreprocess(size=8, mean=(0, 0, 0), std=(1, 1, 1), mode="keep")
    assert kept.at(16).transform()(picture).float().mean() > 0  # resized, not cut from the middle


def test_a_timm_transformer_is_built_for_it():
    encoder = timm_vit(48)
    assert encoder.backbone.pos_embed.shape[1] == 1 + 36
    assert encoder(torch.zeros(1, 3, 48, 48)).shape == (1, 32)
    assert encoder.preprocess.resize is None
    small = timm_vit(32)
    with pytest.raises(InputError, match=r"pos_embed has shape \[1, 37, 32\] instead of \[1, 17"):
        small.load(encoder.backbone.state_dict())


def test_transformers_interpolates_as_the_library_does(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    model = CLIPVisionModel(CLIPVisionConfig(**HF)).eval()
    model.save_pretrained(tmp_path)
    encoder = TransformersEncoder(tmp_path, image_size=48)
    assert encoder.preprocess.size == 48
    images = torch.randn(2, 3, 48, 48)
    want = model(pixel_values=images, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(encoder(images), want, rtol=0, atol=0)
    same = TransformersEncoder(tmp_path, image_size=32)
    plain = model(pixel_values=images[..., :32, :32]).pooler_output
    torch.testing.assert_close(same(images[..., :32, :32]), plain, rtol=0, atol=0)


def test_open_clip_is_built_for_it():
    encoder = OpenClipEncoder("Tiny", image_size=48)
    assert encoder.preprocess.size == 48
    assert encoder(torch.zeros(1, 3, 48, 48)).shape == (1, 24)
    model = open_clip.create_model("Tiny", force_image_size=48)
    shape = model.visual.positional_embedding.shape
    assert encoder.backbone.positional_embedding.shape == shape
    assert OpenClipEncoder("TinyTimm", image_size=48)(torch.zeros(1, 3, 48, 48)).shape == (1, 24)


@pytest.mark.filterwarnings("ignore:name='Tiny.* has .*GELU")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimmEncoder("resnet10t", image_size=0), "image_size=0 must be a whole number"),
        (lambda: TimmEncoder("resnet10t", image_size=32.5), "image_size=32.5 must be a whole"),
        (lambda: MiniViT(image_size=0), "image_size=0 must be a whole number from 1"),
        (lambda: MiniResNet(image_size=-3), "image_size=-3 must be a whole number from 1"),
        (lambda: OpenClipEncoder("Tiny", image_size="big"), "image_size='big' must be a whole"),
        (lambda: TransformersEncoder(HF, image_size=True), "image_size=True must be a whole"),
        (lambda: timm_vit(50), "multiple of the patch's side, 8"),
        (lambda: OpenClipEncoder("Tiny", image_size=50), "multiple of the patch's side, 8"),
        (lambda: TransformersEncoder(HF, image_size=50), "multiple of the patch's side, 8"),
        (
            lambda: TimmEncoder("levit_128s", image_size=8),
            "image_size=8: LevitDistilled takes no images of this side",
        ),
        (
            lambda: TimmEncoder("resnet10t", options={"img_size": 64}, image_size=32),
            "image_size=32 and options=.*img_size.*only once",
        ),
        (
            lambda: TimmEncoder(
                "resnet10t",
                options={"pretrained_cfg_overlay": {"input_size": [3, 8, 8]}},
                image_size=32,
            ),
            "image_size=32 and options=.*input_size.*only once",
        ),
    ],
)
def test_wrong_sizes_are_told_in_one_line(make, message):
    with pytest.raises(InputError, match=message) as fault:
        make()
    assert "\n" not in str(fault.value)


def test_an_overlay_of_ones_own_is_kept():
    options = {"pretrained_cfg_overlay": {"mean": (0.1, 0.2, 0.3)}}
    encoder = TimmEncoder("resnet10t", options=options, image_size=32)
    assert encoder.preprocess.mean == (0.1, 0.2, 0.3)
    assert json.dumps(options) == json.dumps({"pretrained_cfg_overlay": {"mean": (0.1, 0.2, 0.3)}})
