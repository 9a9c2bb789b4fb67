"""A small Vision Transformer with a convolutional stem, for small images and little data."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_merge.core.errors import InputError
from lightning_merge.models.config_files import require_side
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.image_preprocess import ImagePreprocess
from lightning_merge.models.memory_format import MemoryFormat


class ConvStem(nn.Module):
    """A patch embedding of overlapping 3x3 convolutions for a Vision Transformer.

    Early convolutions make Vision Transformers learn faster and from less data (Xiao et al. 2021,
    "Early Convolutions Help Transformers See Better"). Group normalisation has no running
    statistics, so the whole stem is merged.

    Args:
        channels: Output channels of each 3x3 convolution.
        strides: Stride of each convolution; their product divides the image size.
        embed_dim: Width of the tokens.
        img_size: Side of the square image, in pixels.

    Examples:
        >>> import torch
        >>> stem = ConvStem(channels=[4, 4], strides=[2, 1], embed_dim=6, img_size=8)
        >>> stem.num_patches, stem(torch.ones(2, 3, 8, 8)).shape
        (16, torch.Size([2, 16, 6]))
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], embed_dim: int, img_size: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, side = 3, img_size
        for outputs, stride in zip(channels, strides, strict=True):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.GroupNorm(1, outputs),
                nn.GELU(),
            ]
            inputs, side = outputs, -(-side // stride)
        self.layers = nn.Sequential(*layers)
        self.proj = nn.Conv2d(inputs, embed_dim, 1)
        self.grid_size = (side, side)
        self.num_patches = side * side
        self.patch_size = (img_size // side, img_size // side)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [n, 3, s, s] to tokens [n, patches, width]."""
        return self.proj(self.layers(images)).flatten(2).transpose(1, 2)


class MiniViT(Encoder):
    """A timm Vision Transformer whose tokens come from a convolutional stem.

    The defaults have 3.2 M parameters and 16 tokens for a 32-pixel image.

    Args:
        image_size: Side of the square input, in pixels.
        width: Width of the tokens.
        depth: Number of transformer blocks.
        num_heads: Attention heads per block.
        channels: Output channels of the stem's convolutions.
        strides: Strides of the stem's convolutions.
        weights: Checkpoint to start from; random weights without one.
        memory_format: Layout of the images: contiguous, channels_last, or auto: channels_last if
            more than half of the parameters are weights of the stem.

    Raises:
        InputError: The side is not a whole number above 0, channels and strides differ in length,
            or heads do not divide the width.

    Examples:
        >>> import torch
        >>> encoder = MiniViT(8, width=6, depth=1, num_heads=2, channels=[4], strides=[2])
        >>> encoder(torch.ones(5, 3, 8, 8)).shape
        torch.Size([5, 6])
    """

    def __init__(
        self,
        image_size: int = 32,
        width: int = 192,
        depth: int = 6,
        num_heads: int = 3,
        channels: Sequence[int] = (32, 64, 128, 128, 192),
        strides: Sequence[int] = (1, 2, 2, 1, 2),
        weights: str | None = None,
        memory_format: MemoryFormat = "auto",
    ) -> None:
        from timm.models.vision_transformer import VisionTransformer

        require_side(image_size=image_size)
        if len(channels) != len(strides):
            raise InputError(f"channels={channels}, strides={strides}: give one stride for each")
        if width % num_heads:
            raise InputError(
                f"width={width} is not a multiple of num_heads={num_heads}; change one"
            )

        def stem(*, img_size: int, embed_dim: int, **_: Any) -> ConvStem:
            return ConvStem(channels, strides, embed_dim, image_size)

        backbone = VisionTransformer(
            img_size=image_size,
            embed_dim=width,
            depth=depth,
            num_heads=num_heads,
            num_classes=0,
            class_token=False,
            global_pool="avg",
            embed_layer=stem,
        )
        preprocess = ImagePreprocess(
            size=image_size, mean=(0.45, 0.44, 0.41), std=(0.26, 0.25, 0.27)
        )
        super().__init__(backbone, preprocess, dim=width, memory_format=memory_format)
        if weights is not None:
            self.load(weights)
