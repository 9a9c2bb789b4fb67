import open_clip
import pytest
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform, resolve_data_config
from transformers import CLIPImageProcessor

from lightning_merge.core.errors import InputError
from lightning_merge.models import ImagePreprocess

try:  # transformers 5 keeps its PIL pipeline under a name of its own
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
except ImportError:
    CLIPImageProcessorPil = CLIPImageProcessor


def prepared(preprocess: ImagePreprocess, picture: Image.Image) -> torch.Tensor:
    pixels = preprocess.transform()(picture)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, preprocess.size, preprocess.size)
    return preprocess.finish(pixels[None])[0]


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_open_clip(picture, resize_mode, interpolation):
    config = PreprocessCfg(size=32, resize_mode=resize_mode, interpolation=interpolation)
    ours = prepared(ImagePreprocess.from_open_clip(vars(config)), picture)
    torch.testing.assert_close(ours, image_transform_v2(config, False)(picture), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "name", ["resnet50", "vit_base_patch16_224", "vit_base_patch16_siglip_224"]
)
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_timm(picture, name, crop_mode):
    published = timm.get_pretrained_cfg(name).to_dict()
    config = resolve_data_config({"crop_mode": crop_mode, "img_size": 32}, published)
    ours = prepared(ImagePreprocess.from_timm(config), picture)
    theirs = create_transform(**config, is_training=False)(picture.convert("RGB"))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 31, "width": 31}, "resample": 2},
        {"size": {"height": 32, "width": 32}, "do_center_crop": False},
    ],
)
def test_transformers(picture, options):
    processor = CLIPImageProcessorPil(**options)
    ours = prepared(ImagePreprocess.from_transformers(processor.to_dict()), picture)
    theirs = torch.as_tensor(processor(picture)["pixel_values"][0])
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_transformers_reads_the_integers_of_old_files():
    new = CLIPImageProcessor().to_dict()
    old = {**new, "size": 224, "crop_size": 224}
    assert ImagePreprocess.from_transformers(old) == ImagePreprocess.from_transformers(new)


def test_palettes_become_rgb_before_resizing():
    colours = Image.radial_gradient("L").convert("RGB")
    preprocess = ImagePreprocess(32, (0.5,) * 3, (0.5,) * 3)
    pixels = preprocess.transform()(colours.quantize(256))
    expected = preprocess.transform()(colours)
    assert (pixels.int() - expected.int()).abs().max() <= 2


def test_batches_are_normalised_like_images():
    preprocess = ImagePreprocess(4, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    images = torch.arange(96, dtype=torch.uint8).view(2, 3, 4, 4)
    channel = (images[1, 2].double() / 255 - 0.3) / 0.6
    torch.testing.assert_close(preprocess.finish(images)[1, 2].double(), channel)
    assert images.flatten()[5] == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "size=0"),
        ({"interpolation": "cubic"}, "interpolation='cubic'.*bicubic"),
        ({"mode": "border"}, "mode='border'.*squash"),
    ],
)
def test_bad_values(wrong, message):
    good = {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(InputError, match=message):
        ImagePreprocess(**{**good, **wrong})


def test_floats_are_refused():
    with pytest.raises(InputError, match=r"torch.float32.*uint8"):
        ImagePreprocess(4, (0.5,) * 3, (0.5,) * 3).finish(torch.zeros(1, 3, 4, 4))


def test_unsupported_configurations():
    base = timm.get_pretrained_cfg("resnet50").to_dict()
    with pytest.raises(InputError, match="crop_mode='border'"):
        ImagePreprocess.from_timm(resolve_data_config({"crop_mode": "border"}, base))
    with pytest.raises(InputError, match=r"\(32, 48\): only square"):
        ImagePreprocess.from_open_clip(vars(open_clip.transform.PreprocessCfg(size=(32, 48))))
