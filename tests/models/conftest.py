"""Tiny models of the true classes, saved the way the libraries publish them."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
COCA = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


@pytest.fixture(scope="session", autouse=True)
def tiny_clip(tmp_path_factory) -> None:
    """Register small models in open_clip: of each kind of visual tower, and of each activation."""
    folder = tmp_path_factory.mktemp("configs")
    trunk = {"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear"}
    models = {
        "Tiny": {"vision_cfg": VISION},
        "Tiny-quickgelu": {"vision_cfg": VISION, "quick_gelu": True},
        "Tiny-deep": {"vision_cfg": {**VISION, "layers": 3}},
        "TinyResNet": {"vision_cfg": {**VISION, "layers": [1, 1, 1, 1], "width": 8}},
        "TinyTimm": {"vision_cfg": {**trunk, "image_size": 32}, "custom_text": True},
        "TinyCoCa": {"vision_cfg": COCA, "multimodal_cfg": TEXT, "custom_text": True},
    }
    for name, parts in models.items():
        config = {"embed_dim": 24, "text_cfg": TEXT, **parts}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(params=[("RGB", (61, 40)), ("RGB", (35, 48)), ("L", (28, 28)), ("RGB", (91, 64))])
def picture(request) -> Image.Image:
    mode, (width, height) = request.param
    generator = np.random.default_rng(width)
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
