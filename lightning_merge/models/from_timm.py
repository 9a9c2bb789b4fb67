"""Encoders of timm."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning_merge.core.checkpoints.hub import offline_if_unreachable
from lightning_merge.core.errors import InputError, warn
from lightning_merge.models.activation import Activation, activation_in
from lightning_merge.models.config_files import require_side
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.image_preprocess import ImagePreprocess
from lightning_merge.models.loading import unknown_name
from lightning_merge.models.memory_format import MemoryFormat

_ON_THE_HUB = ("hf-hub:", "hf_hub:")
_FAULTS = (
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
)


class TimmEncoder(Encoder):
    """Any timm model without its classifier: resnet50, every ViT.

    Features are the input of timm's classifier, pooled and normalised by the model.

    Args:
        name: Model, with or without a tag: resnet50, vit_base_patch16_224.augreg_in21k.
        pretrained: Download the weights of the tag, or of the model's default tag.
        weights: File of weights to use instead; its classifier is ignored.
        options: Further arguments of ``timm.create_model``, such as drop_path_rate.
        image_size: Side of the square input, in pixels; the model's own by default. The shorter
            side of an image is then resized to it, and no further margin is cropped (timm's
            crop_pct is 1). Convolutional networks take any size. Transformers are built for it:
            timm interpolates the position embeddings of weights that it downloads, and a file must
            have been trained at this size.
        memory_format: Layout of the images: contiguous, channels_last, or auto, channels_last if
            more than half of the parameters are weights of 2-D convolutions.

    Raises:
        InputError: The name is unknown, the model takes no images of this size, the weights cannot
            be loaded, or the file fits another architecture.

    Examples:
        >>> import torch
        >>> encoder = TimmEncoder("vit_tiny_patch16_224", options={"depth": 1}, image_size=32)
        >>> encoder.preprocess.size, encoder(torch.ones(5, 3, 32, 32)).shape
        (32, torch.Size([5, 192]))
    """

    library = "timm"

    def __init__(
        self,
        name: str = "resnet50",
        pretrained: bool = False,
        weights: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        image_size: int | None = None,
        memory_format: MemoryFormat = "auto",
    ) -> None:
        from timm.data import resolve_data_config

        options = _sized(dict(options or {}), image_size)
        if pretrained and weights is not None:
            raise InputError(f"pretrained=True and weights={weights}: give only one of them")
        _check(name)
        model = _built(name, pretrained, options)
        size = {"img_size": options["img_size"]} if "img_size" in options else {}
        config = resolve_data_config(size, model=model)
        dim = getattr(model, "head_hidden_size", None) or model.num_features
        preprocess = ImagePreprocess.from_timm(config).at(image_size)
        super().__init__(model, preprocess, int(dim), memory_format)
        self.activation = _activation(name, model, pretrained)
        if image_size is not None:
            self.check_size()
        if weights is not None:
            self.load(weights)


def _built(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    """Return timm's model without classifier; its options are what timm checks itself."""
    import timm

    asks = pretrained or name.startswith(_ON_THE_HUB)
    try:
        with offline_if_unreachable() if asks else nullcontext():
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except _FAULTS as error:
        raise InputError(
            f"name={name!r}, pretrained={pretrained}, options={options}: timm could not build "
            f"the model ({error}). Correct the options; offline, give a file as weights"
        ) from error


def _sized(options: dict[str, Any], image_size: int | None) -> dict[str, Any]:
    """Add the size of the images to timm's options."""
    if image_size is None:
        return options
    require_side(image_size=image_size)
    overlay = dict(options.get("pretrained_cfg_overlay") or {})
    if "img_size" in options or "input_size" in overlay:
        raise InputError(f"image_size={image_size} and options={options}: give the size only once")
    overlay["input_size"] = (3, image_size, image_size)  # becomes img_size where a model has it
    return {**options, "pretrained_cfg_overlay": overlay}


def _activation(name: str, model: Any, pretrained: bool) -> Activation | None:
    """Return the activation of a CLIP tower; warn if the tag's weights need the other one."""
    import timm

    architecture, _, tag = name.partition(".")
    plain = architecture.replace("_clip_quickgelu_", "_clip_")
    other = plain.replace("_clip_", "_clip_quickgelu_") if plain == architecture else plain
    kind = activation_in(model)
    if kind is None or other == architecture or not timm.is_model(other):
        return None
    settled = pretrained or bool(tag)
    notes = " ".join(getattr(model, "pretrained_cfg", {}).get("notes") or ())
    if settled and "natively QuickGELU" in notes and kind != "quick_gelu":
        warn(
            f"name={name!r} has GELU, though the weights of its tag were trained with QuickGELU: "
            f"{other}{f'.{tag}' if tag else ''} has it. Keep it for experts that were fine-tuned so"
        )
    settle = "" if settled else "give the name with the tag of the weights that they come from"
    return Activation(kind, f"name={name!r}", f"name={other!r}", settle)


def _check(name: str) -> None:
    """Check that timm has the model and the tag, if the name has one.

    Raises:
        InputError: Model or tag is unknown.
    """
    import timm

    if name.startswith((*_ON_THE_HUB, "local-dir:")):
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown_name("name", name, timm.list_models())
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise unknown_name("name", name, tagged, f"Tags of {architecture}: {', '.join(tagged)}")
