"""Preprocessing of an encoder's images, as defined by the library that publishes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_merge.core.checks import require_choice, require_in
from lightning_merge.core.errors import InputError
from lightning_merge.models.config_files import Colours, Fields, is_number, require_side
from lightning_merge.models.preprocess import Preprocess

if TYPE_CHECKING:
    from torchvision.transforms.v2 import Transform

PIL_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_CLIP_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPFeatureExtractor")
_CLIP_SIZE = 224
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ImagePreprocess(Preprocess):
    """Resizing, cropping and normalisation of the images of one encoder.

    It has two steps: :meth:`transform` makes uint8 images once, in the data loader, and
    :meth:`finish` turns batches of them into floats on the model's device. Images become RGB
    *before* they are resized, so palettes and grey images are interpolated like any other.

    Attributes:
        size: Side of the encoder's square input, in pixels.
        mean: Mean of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel, on the same scale.
        interpolation: Pillow's name of the resizing filter: ``nearest``, ``lanczos``,
            ``bilinear``, ``bicubic``, ``box`` or ``hamming``.
        resize: Side in pixels to which an image is resized before the centre crop; ``size``
            if None.
        mode: Sides to resize: ``shortest`` or ``longest`` with the proportions kept (``longest``
            then pads with black), both (``squash``) or none (``keep``).
        crop: Rounding of odd margins: ``round`` like torchvision, open_clip and timm, ``floor``
            like transformers' Pillow pipeline.

    Examples:
        >>> from PIL import Image
        >>> preprocess = ImagePreprocess(size=2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> images = preprocess.transform()(Image.new("RGB", (6, 4), (255, 255, 0)))
        >>> images.shape, preprocess.finish(images)[:, 0, 0]
        (torch.Size([3, 2, 2]), tensor([ 1.,  1., -1.]))
    """

    kind: ClassVar[str] = "images"
    dtype: ClassVar[torch.dtype] = torch.uint8

    size: int
    mean: Colours
    std: Colours
    interpolation: str = "bicubic"
    resize: int | None = None
    mode: Literal["shortest", "longest", "squash", "keep"] = "shortest"
    crop: Literal["round", "floor"] = "round"

    def __post_init__(self) -> None:
        require_in("[1, inf)", size=self.size)
        require_choice(PIL_FILTERS.values(), interpolation=self.interpolation)
        require_choice(("shortest", "longest", "squash", "keep"), mode=self.mode)

    def at(self, image_size: int | None) -> ImagePreprocess:
        """Return the preprocessing for images of another size, without a margin to be cropped.

        Args:
            image_size: Side in pixels to which images are resized; None changes nothing.

        Raises:
            InputError: It is not a whole number from 1 to 16384.

        Examples:
            >>> own = ImagePreprocess(size=224, mean=(0, 0, 0), std=(1, 1, 1), resize=256)
            >>> own.at(64).size, own.at(64).resize, own.at(None).resize
            (64, None, 256)
        """
        if image_size is None:
            return self
        require_side(image_size=image_size)
        mode = "shortest" if self.mode == "keep" else self.mode
        return replace(self, size=image_size, resize=None, mode=mode)

    def shape(self, parts: int = 1, answers: int = 0) -> tuple[int, int, int]:
        """Return the shape of an image, [3, size, size]."""
        return (3, self.size, self.size)

    def transform(self) -> Transform:
        """Build the transform from a PIL image to a uint8 tensor [3, size, size]."""
        from torchvision.transforms import v2

        return v2.Compose([v2.RGB(), v2.Lambda(self._fit), v2.PILToTensor()])

    def _fit(self, image: Any) -> Any:
        """Resize a PIL image and crop its centre."""
        from torchvision.transforms.v2 import InterpolationMode, functional

        width, height = image.size
        to = self.resize or self.size
        if self.mode == "keep":
            target = [height, width]
        elif self.mode == "squash":
            target = [to, to]
        elif self.mode == "longest":
            target = [round(side * to / max(width, height)) for side in (height, width)]
        else:  # the longer side is cut to whole pixels, as all four libraries do
            target = [int(to * side / min(width, height)) for side in (height, width)]
        if self.mode != "keep":
            image = functional.resize(image, target, InterpolationMode(self.interpolation))
        if self.crop == "round":
            return functional.center_crop(image, [self.size, self.size])
        # A margin that is cut off is rounded down, one that is filled up with black rounded up.
        top, left = ((side - self.size) // 2 for side in target)
        return functional.crop(image, top, left, self.size, self.size)

    def finish(self, batch: Tensor) -> Tensor:
        """Turn uint8 images [..., 3, s, s] into normalised float32 images of that shape.

        Raises:
            InputError: The images are not uint8.
        """
        if batch.dtype is not torch.uint8:
            raise InputError(f"images of {batch.dtype}: give uint8 images, before normalisation")
        mean = torch.tensor(self.mean, device=batch.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=batch.device).view(3, 1, 1)
        return batch.float().div_(255).sub_(mean).div_(std)

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any]) -> ImagePreprocess:
        """Read the ``preprocess_cfg`` of an open_clip visual tower."""
        fields = Fields("preprocess_cfg", config)
        return cls(
            size=fields.side("size", _CLIP_SIZE),
            mean=fields.colours("mean", _CLIP_MEAN),
            std=fields.colours("std", _CLIP_STD),
            interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
            mode=config["resize_mode"],
        )

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> ImagePreprocess:
        """Read the result of ``timm.data.resolve_model_data_config`` for a model."""
        modes: dict[str, Any] = {"center": "shortest", "squash": "squash"}
        if (mode := modes.get(config["crop_mode"])) is None:
            raise InputError(
                f"crop_mode={config['crop_mode']!r}: only {', '.join(modes)} are supported"
            )
        fields = Fields("timm's pretrained_cfg", {**config, "size": config["input_size"][-2:]})
        size = fields.side("size", _CLIP_SIZE)
        if fields.number("crop_pct", 1) <= 0:
            raise fields.wrong("crop_pct", "it must be above 0")
        return cls(
            size=size,
            mean=fields.colours("mean", _CLIP_MEAN),
            std=fields.colours("std", _CLIP_STD),
            interpolation=config["interpolation"],
            resize=int(size / fields.number("crop_pct", 1)),
            mode=mode,
        )

    @classmethod
    def from_transformers(
        cls, config: Mapping[str, Any], file: str = "preprocessor_config.json"
    ) -> ImagePreprocess:
        """Read the configuration of a CLIPImageProcessor of transformers.

        Both the old format, with integer sizes, and the new one are supported. Missing fields
        stand for the class's defaults, and so does null except for bools.

        Args:
            config: Fields of the file.
            file: Name of the file, used in messages.

        Raises:
            InputError: A field is wrong or asks for something unsupported.
        """
        fields = Fields(file, config)
        kind = fields.get("image_processor_type", fields.get("feature_extractor_type", None))
        if kind is not None and str(kind).removesuffix("Pil") not in _CLIP_PROCESSORS:
            raise InputError(f"{file}: image processor {kind!r}: only CLIP's are supported")
        if fields.get("do_pad", False):
            raise fields.wrong("do_pad", "images cannot be padded here")
        resample = fields.get("resample", 3)
        if not is_number(resample) or resample not in PIL_FILTERS:
            raise fields.wrong("resample", f"give one of Pillow's, 0 to {len(PIL_FILTERS) - 1}")
        mode, edge = _resizing(fields)
        mean, std = _normalisation(fields)
        return cls(
            size=_cropped(fields, mode, edge),
            mean=mean,
            std=std,
            interpolation=PIL_FILTERS[resample],
            resize=edge,
            mode=mode,
            crop="floor",
        )


def _resizing(fields: Fields) -> tuple[Literal["shortest", "squash", "keep"], int | None]:
    """Return which sides to resize, and to how many pixels."""
    if not fields.flag("do_resize", True):
        return "keep", None
    if fields.flag("use_square_size", False):
        return "squash", _CLIP_SIZE
    size = fields.get("size", _CLIP_SIZE)
    if isinstance(size, Mapping) and _given(size) == {"shortest_edge"}:
        return "shortest", fields.part("size").whole("shortest_edge", _CLIP_SIZE)
    if is_number(size):
        return "shortest", fields.side("size", _CLIP_SIZE)
    return "squash", _square_side(fields, "size")


def _square_side(fields: Fields, key: str) -> int:
    """Return the side of a square, given as one number or as height and width."""
    value = fields.get(key, _CLIP_SIZE)
    if not isinstance(value, Mapping):
        return fields.side(key, _CLIP_SIZE)
    if _given(value) != {"height", "width"}:
        also = " or shortest_edge" if key == "size" else ""
        raise fields.wrong(key, f"give height and width{also}, and nothing else")
    height, width = (fields.part(key).whole(side, _CLIP_SIZE) for side in ("height", "width"))
    if height != width:
        raise fields.wrong(key, "only square images are supported")
    return height


def _given(size: Mapping[str, Any]) -> set[str]:
    return {name for name, value in size.items() if value is not None}


def _cropped(fields: Fields, mode: str, edge: int | None) -> int:
    """Return the side of the final images."""
    if fields.flag("do_center_crop", True):
        return _square_side(fields, "crop_size")
    if mode != "squash" or edge is None:
        what = "images of one size are needed: give height and width as size, or let it be true"
        raise fields.wrong("do_center_crop", what)
    return edge


def _normalisation(fields: Fields) -> tuple[Colours, Colours]:
    """Return mean and standard deviation for colours scaled to [0, 1]."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if fields.flag("do_normalize", True):
        mean, std = fields.colours("image_mean", _CLIP_MEAN), fields.colours("image_std", _CLIP_STD)
        if 0 in std:
            raise fields.wrong("image_std", "it must not be 0")
    factor = fields.number("rescale_factor", 1 / 255) if fields.flag("do_rescale", True) else 1.0
    if factor <= 0:
        raise fields.wrong("rescale_factor", "it must be above 0")
    scale = 255 * factor  # what colours from 0 to 1 are multiplied by
    if math.isclose(scale, 1, rel_tol=1e-12):
        return mean, std
    (red, green, blue), (r, g, b) = mean, std
    return (red / scale, green / scale, blue / scale), (r / scale, g / scale, b / scale)
