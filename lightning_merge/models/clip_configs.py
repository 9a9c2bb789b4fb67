"""The configuration of one CLIP for open_clip (`model_cfg`) and for transformers (`CLIPConfig`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_merge.core.errors import InputError
from lightning_merge.models.image_preprocess import PIL_FILTERS, ImagePreprocess

_EPSILON = 1e-5  # of open_clip's layer normalisations
_OF_MODEL = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"}
_OF_TOWER = {"layers", "width", "mlp_ratio"}
_OF_VISION = {*_OF_TOWER, "head_width", "patch_size", "image_size", "patch_dropout"}
_OF_TEXT = {*_OF_TOWER, "context_length", "vocab_size", "heads"}


def for_transformers(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of transformers' `CLIPConfig` for an open_clip model.

    Args:
        model: The `model_cfg` of open_clip.

    Raises:
        InputError: The CLIP of transformers cannot be built so.

    Examples:
        >>> vision = {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8}
        >>> text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
        >>> config = for_transformers({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text})
        >>> config["vision_config"]["num_attention_heads"], config["text_config"]["hidden_act"]
        (2, 'gelu')
    """
    vision, text = model["vision_cfg"], model["text_cfg"]
    _check(model, _OF_MODEL, "")
    _check(vision, _OF_VISION, "vision_cfg.")
    _check(text, _OF_TEXT, "text_cfg.")
    if not isinstance(vision["layers"], int):
        raise _no_place("vision_cfg.layers", vision["layers"])
    words = text.get("vocab_size", 49408)
    both = {
        "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "layer_norm_eps": _EPSILON,
        "projection_dim": model["embed_dim"],
    }
    return {
        "model_type": "clip",
        "projection_dim": model["embed_dim"],
        "vision_config": {
            "model_type": "clip_vision_model",
            **both,
            **_tower(vision, vision["width"] // vision.get("head_width", 64)),
            "image_size": vision.get("image_size", 224),
            "patch_size": vision["patch_size"],
        },
        "text_config": {
            "model_type": "clip_text_model",
            **both,
            **_tower(text, text.get("heads", 8)),
            "max_position_embeddings": text.get("context_length", 77),
            "vocab_size": words,
            "bos_token_id": words - 2,  # CLIP's vocabulary ends with them
            "eos_token_id": words - 1,
        },
    }


def _tower(fields: Mapping[str, Any], heads: int) -> dict[str, Any]:
    return {
        "hidden_size": fields["width"],
        "intermediate_size": int(fields["width"] * fields.get("mlp_ratio", 4.0)),
        "num_hidden_layers": fields["layers"],
        "num_attention_heads": heads,
    }


def _check(fields: Mapping[str, Any], known: set[str], place: str) -> None:
    for name, value in fields.items():
        if value and (name not in known or name == "custom_text"):
            raise _no_place(place + name, value)


def _no_place(name: str, value: object) -> InputError:
    return InputError(
        f"to='transformers': its CLIP has nothing like {name}={value!r} of this open_clip model; "
        "give --to open_clip"
    )


def for_open_clip(config: Any) -> dict[str, Any]:
    """Return open_clip's `model_cfg` for a CLIP of transformers.

    Args:
        config: A `CLIPConfig`.

    Raises:
        InputError: The library cannot build this CLIP.

    Examples:
        >>> from transformers import CLIPConfig
        >>> for_open_clip(CLIPConfig())["vision_cfg"]["head_width"]
        64
    """
    vision, text = config.vision_config, config.text_config
    if {vision.hidden_act, text.hidden_act} not in ({"gelu"}, {"quick_gelu"}):
        raise InputError(
            f"to='open_clip': hidden_act={vision.hidden_act!r} of the vision tower and "
            f"{text.hidden_act!r} of the text tower: open_clip has gelu or quick_gelu in both"
        )
    if {vision.layer_norm_eps, text.layer_norm_eps} != {_EPSILON}:
        raise InputError(
            f"to='open_clip': layer_norm_eps={vision.layer_norm_eps}, {text.layer_norm_eps}: "
            f"open_clip has {_EPSILON}"
        )
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": vision.hidden_act == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
        },
    }


def preprocess_for_transformers(preprocess: ImagePreprocess) -> dict[str, Any]:
    """Return the fields of `preprocessor_config.json` for the preprocessing of a CLIP.

    Raises:
        InputError: The library's processor of CLIP cannot do it.

    Examples:
        >>> own = ImagePreprocess(size=32, mean=(0, 0, 0), std=(1, 1, 1))
        >>> preprocess_for_transformers(own)["size"]
        {'shortest_edge': 32}
    """
    if preprocess.mode not in ("shortest", "squash"):
        raise InputError(
            f"to='transformers': images are resized by {preprocess.mode!r}, which its CLIP's "
            "processor cannot do; give --to open_clip"
        )
    edge = preprocess.resize or preprocess.size
    squared = {"height": edge, "width": edge}
    codes = {name: code for code, name in PIL_FILTERS.items()}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": edge} if preprocess.mode == "shortest" else squared,
        "resample": codes[preprocess.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": preprocess.size, "width": preprocess.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def preprocess_for_open_clip(preprocess: ImagePreprocess) -> dict[str, Any]:
    """Return open_clip's `preprocess_cfg`, to which it adds the size of the network.

    Raises:
        InputError: The library cannot do it.

    Examples:
        >>> own = ImagePreprocess(size=32, mean=(0, 0, 0), std=(1, 1, 1))
        >>> preprocess_for_open_clip(own)["resize_mode"]
        'shortest'
    """
    margin = preprocess.resize not in (None, preprocess.size)
    if preprocess.mode == "keep" or margin or preprocess.interpolation not in _OPEN_CLIP_FILTERS:
        raise InputError(
            f"to='open_clip': it cannot prepare images as this network needs, {preprocess!r}; give "
            "--to transformers"
        )
    return {
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "resize_mode": preprocess.mode,
    }


_OPEN_CLIP_FILTERS = ("bicubic", "bilinear")
