"""The memory format in which a network gets its images: channels last for convolutional ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

from torch import nn

from lightning_merge.core.checks import require_choice
from lightning_merge.core.errors import InputError

MemoryFormat = Literal["auto", "contiguous", "channels_last"]

MIN_CHANNELS_LAST = 8
"""Fewest input channels of a strided 1x1 convolution, without groups, on channels-last images.

With fewer, the backward pass of torch 2.14 writes past the end of its memory on a CPU with AVX2.
"""


def arrange(backbone: nn.Module, memory_format: MemoryFormat) -> MemoryFormat:
    """Let a network get its images in a memory format.

    Weights keep their layout, so files and merges of weights do not depend on it; every convolution
    follows its input.

    Args:
        backbone: The network; a hook rearranges its images if they have to be.
        memory_format: "contiguous", "channels_last", or "auto": channels last if more than half of
            the parameters are weights of 2-D convolutions.

    Returns:
        "contiguous" or "channels_last".

    Raises:
        InputError: The name is unknown, or torch cannot run a layer on channels-last images.

    Examples:
        >>> arrange(nn.Conv2d(3, 8, 3), "auto"), arrange(nn.Linear(3, 8), "auto")
        ('channels_last', 'contiguous')
    """
    require_choice(get_args(MemoryFormat), memory_format=memory_format)
    if memory_format == "contiguous":
        return memory_format
    narrow = next(_narrow(backbone), None)
    if memory_format == "auto" and (narrow or not _is_convolutional(backbone)):
        return "contiguous"
    if narrow:
        raise InputError(
            f"memory_format='channels_last': {narrow} is a strided 1x1 convolution of fewer than "
            f"{MIN_CHANNELS_LAST} input channels, which torch cannot train so: choose auto or "
            "contiguous"
        )
    backbone.register_forward_pre_hook(_to_channels_last)
    return "channels_last"


def _is_convolutional(backbone: nn.Module) -> bool:
    """Return whether more than half of the parameters are weights of 2-D convolutions."""
    layers = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    weights = sum(layer.weight.numel() for layer in layers)
    return 2 * weights > sum(parameter.numel() for parameter in backbone.parameters())


def _narrow(backbone: nn.Module) -> Iterator[str]:
    """Yield the convolutions that torch cannot run backwards on channels-last images."""
    for name, module in backbone.named_modules():
        if (
            isinstance(module, nn.Conv2d)
            and set(module.kernel_size) == {1} != set(module.stride)
            and module.in_channels < MIN_CHANNELS_LAST
            and module.groups == 1
        ):
            yield name


def _to_channels_last(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Rearrange images [n, 3, s, s], the first argument of a network."""
    images, *rest = args
    last = images.movedim(1, -1).contiguous()  # `vmap` knows no memory formats
    return (last.movedim(-1, 1), *rest)
