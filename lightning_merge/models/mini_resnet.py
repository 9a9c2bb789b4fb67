"""A small residual network with BatchNorm, for small images and little data."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_merge.core.errors import InputError
from lightning_merge.models.config_files import require_side
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.image_preprocess import ImagePreprocess
from lightning_merge.models.memory_format import MemoryFormat


class MiniResNet(Encoder):
    """A ResNet of 0.4 million weights whose first stage keeps small images at full size.

    It is timm's ResNet of basic blocks (He et al. 2016, "Deep Residual Learning for Image
    Recognition"). Its stem is one 3x3 convolution without pooling, as in their networks for
    32-pixel images.

    Args:
        image_size: Side of the square input, in pixels.
        channels: Channels of the four stages, the first even, the last the feature width.
        layers: Blocks of each stage. All stages except the first halve the side.
        weights: Checkpoint to start from; random weights without one.
        memory_format: Layout of the images: contiguous, channels_last, or auto: the latter, unless
            some channels are too few for torch.

    Raises:
        InputError: The side is not a whole number above 0, there are not four stages, one is empty,
            or the first has an odd width.

    Examples:
        >>> import torch
        >>> encoder = MiniResNet(image_size=16, channels=(4, 4, 8, 8))
        >>> encoder(torch.ones(5, 3, 16, 16)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: Sequence[int] = (16, 32, 64, 160),
        layers: Sequence[int] = (1, 1, 1, 1),
        weights: str | None = None,
        memory_format: MemoryFormat = "auto",
    ) -> None:
        from timm.models.resnet import BasicBlock, ResNet

        require_side(image_size=image_size)
        if len(channels) != 4 or len(layers) != 4 or min(*channels, *layers) < 1:
            raise InputError(f"channels={channels}, layers={layers}: give four of each, 1 or more")
        if channels[0] % 2:
            raise InputError(f"channels={channels}: the first must be even")
        backbone: Any = ResNet(
            BasicBlock,  # type: ignore[arg-type]
            tuple(layers),
            channels=tuple(channels),
            stem_type="deep",  # the one whose width can be chosen
            stem_width=channels[0] // 2,
            num_classes=0,
        )
        backbone.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        backbone.maxpool = nn.Identity()
        preprocess = ImagePreprocess(
            size=image_size, mean=(0.45, 0.44, 0.41), std=(0.26, 0.25, 0.27)
        )
        super().__init__(backbone, preprocess, dim=channels[-1], memory_format=memory_format)
        if weights is not None:
            self.load(weights)
