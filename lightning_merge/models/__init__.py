"""Encoders and classification heads; their libraries are imported only when one is built."""

from lightning_merge.core.subclasses import concrete
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.from_open_clip import OpenClipEncoder
from lightning_merge.models.from_timm import TimmEncoder
from lightning_merge.models.from_transformers import TransformersEncoder
from lightning_merge.models.head_files import load_heads, save_heads
from lightning_merge.models.heads import (
    CosineHead,
    Head,
    LinearHead,
    NormalizedLinearHead,
    class_mean_head,
    linear_probe_head,
)
from lightning_merge.models.image_preprocess import ImagePreprocess
from lightning_merge.models.mini_resnet import MiniResNet
from lightning_merge.models.mini_vit import MiniViT
from lightning_merge.models.t5 import T5Encoder
from lightning_merge.models.text_encoder import TextEncoder
from lightning_merge.models.text_heads import zero_shot_head, zero_shot_heads
from lightning_merge.models.text_preprocess import TextPreprocess

__all__ = [
    "CosineHead",
    "Encoder",
    "Head",
    "ImagePreprocess",
    "LinearHead",
    "MiniResNet",
    "MiniViT",
    "NormalizedLinearHead",
    "OpenClipEncoder",
    "T5Encoder",
    "TextEncoder",
    "TextPreprocess",
    "TimmEncoder",
    "TransformersEncoder",
    "class_mean_head",
    "encoders",
    "linear_probe_head",
    "load_heads",
    "save_heads",
    "zero_shot_head",
    "zero_shot_heads",
]


def encoders() -> dict[str, str]:
    """Return the names of all known encoder classes, with the first line of their docstrings.

    Examples:
        >>> encoders()["MiniViT"]
        'A timm Vision Transformer whose tokens come from a convolutional stem.'
    """
    return {
        name: (kind.__doc__ or "").strip().partition("\n")[0]
        for name, kind in concrete(Encoder).items()
    }
