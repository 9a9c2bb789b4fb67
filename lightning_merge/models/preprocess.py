"""What an encoder's images must look like, read from the library that publishes the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lightning_merge.core.errors import InputError

if TYPE_CHECKING:
    from torchvision.transforms.v2 import Transform

_PIL_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Preprocess:
    """Resizing, cropping and normalisation of the images of one encoder.

    The work is split in two: :meth:`transform` makes uint8 images once, in the data loader,
    and :meth:`normalize` turns batches of them into floats on the device of the model.
    Images become RGB *before* they are resized, so that palettes and grey images are
    interpolated like any other.

    Attributes:
        size: Side of the square image that the encoder takes, in pixels.
        mean: Mean of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel, on the same scale.
        interpolation: Filter of the resizing: ``nearest``, ``bilinear`` or ``bicubic``.
        resize: Side in pixels to which an image is resized before the centre crop; ``size``
            when None.
        mode: ``shortest`` and ``longest`` resize that side and keep the proportions (``longest``
            then fills up with black), ``squash`` resizes both.
        crop: Where an odd margin goes: ``round`` as torchvision, open_clip and timm, ``floor`` as
            transformers.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize: int | None = None
    mode: Literal["shortest", "longest", "squash"] = "shortest"
    crop: Literal["round", "floor"] = "round"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"size={self.size}: give the image side in pixels, at least 1.")
        if self.interpolation not in _PIL_FILTERS.values():
            choices = ", ".join(_PIL_FILTERS.values())
            raise InputError(f"interpolation={self.interpolation!r}: choose one of {choices}.")
        if self.mode not in ("shortest", "longest", "squash"):
            raise InputError(f"mode={self.mode!r}: choose shortest, longest or squash.")

    def transform(self) -> Transform:
        """Build the pipeline from a PIL image to a uint8 tensor [3, size, size]."""
        from torchvision.transforms import v2

        return v2.Compose([v2.RGB(), v2.Lambda(self._fit), v2.PILToTensor()])

    def _fit(self, image: Any) -> Any:
        """Resize a PIL image and cut the centre out of it."""
        from torchvision.transforms.v2 import InterpolationMode, functional

        width, height = image.size
        to = self.resize or self.size
        if self.mode == "squash":
            target = [to, to]
        elif self.mode == "longest":
            target = [round(side * to / max(width, height)) for side in (height, width)]
        else:  # the longer side is cut to whole pixels, as all four libraries do
            target = [int(to * side / min(width, height)) for side in (height, width)]
        image = functional.resize(image, target, InterpolationMode(self.interpolation))
        if self.crop == "round" or min(target) < self.size:
            return functional.center_crop(image, [self.size, self.size])
        top, left = ((side - self.size) // 2 for side in target)
        return functional.crop(image, top, left, self.size, self.size)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 images [..., 3, s, s] into normalised float32 images of that shape.

        Raises:
            InputError: If the images are not uint8.
        """
        if images.dtype is not torch.uint8:
            raise InputError(f"images of {images.dtype}: give uint8 images, before normalisation.")
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1)
        return images.float().div_(255).sub_(mean).div_(std)

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any]) -> Preprocess:
        """Read the ``preprocess_cfg`` that open_clip leaves on a visual tower."""
        return cls(
            size=_square(config["size"]),
            mean=_channels(config["mean"]),
            std=_channels(config["std"]),
            interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
            mode=config["resize_mode"],
        )

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> Preprocess:
        """Read what ``timm.data.resolve_model_data_config`` says about a model."""
        modes: dict[str, Any] = {"center": "shortest", "squash": "squash"}
        if (mode := modes.get(config["crop_mode"])) is None:
            raise InputError(f"crop_mode={config['crop_mode']!r}: only {', '.join(modes)} work.")
        size = _square(config["input_size"][-2:])
        return cls(
            size=size,
            mean=_channels(config["mean"]),
            std=_channels(config["std"]),
            interpolation=config["interpolation"],
            resize=int(size / config["crop_pct"]),
            mode=mode,
        )

    @classmethod
    def from_transformers(cls, config: Mapping[str, Any]) -> Preprocess:
        """Read a ``preprocessor_config.json``, old (integer sizes) or new (mappings)."""
        size = config.get("size", 224)
        edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
        side = edge if edge is not None else _square((size["height"], size["width"]))
        crop = config.get("crop_size", side) if config.get("do_center_crop", True) else side
        if isinstance(crop, Mapping):
            crop = _square((crop["height"], crop["width"]))
        return cls(
            size=int(crop),
            mean=_channels(config["image_mean"]),
            std=_channels(config["image_std"]),
            interpolation=_PIL_FILTERS.get(config.get("resample", 3), "unknown"),
            resize=int(side),
            mode="shortest" if edge is not None else "squash",
            crop="floor",
        )


def _square(size: int | tuple[int, int] | list[int]) -> int:
    """Return the side of a square given as one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise InputError(f"image size {height} x {width}: only square images are supported.")
    return int(height)


def _channels(values: Any) -> tuple[float, float, float]:
    """Return one value for each of the three colours."""
    numbers = tuple(float(v) for v in values)
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue
