"""A CLIP as open_clip keeps it in a folder or repository of the Hub."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from lightning_merge.core.checkpoints.library import OPEN_CLIP_CONFIG, companions
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.completed import Completed, completed
from lightning_merge.models.activation import Activation
from lightning_merge.models.clip_configs import for_open_clip, preprocess_for_open_clip
from lightning_merge.models.encoder_options import EncoderOptions
from lightning_merge.models.from_open_clip import OpenClipEncoder, quiet, tag_config
from lightning_merge.models.from_transformers import preprocess_of
from lightning_merge.models.image_preprocess import ImagePreprocess
from lightning_merge.models.library_folder import (
    Given,
    LibraryFolder,
    as_json,
    no_description,
)
from lightning_merge.models.loading import fitting


def to_open_clip(
    source: Given, base: Given | None, encoder: EncoderOptions | None
) -> LibraryFolder:
    """Return a CLIP as a folder that `open_clip.create_model("local-dir:FOLDER")` loads.

    The network is described by the base's folder, the source's or the encoder, whichever is the
    first to know a CLIP.

    Args:
        source: Weights of a CLIP or of its visual tower, under the names of either library.
        base: The CLIP that they come from, which has what they lack.
        encoder: OpenClipEncoder and its options.

    Raises:
        InputError: The library is too old, nothing describes the network, weights do not fit it, or
            the source is a tower and there is no base.

    Examples:
        >>> from lightning_merge.core.checkpoints.checkpoint import as_checkpoint
        >>> to_open_clip(Given("merged.safetensors", as_checkpoint({}), None), None, None)
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: source='merged.safetensors': nothing says which
        network of open_clip these weights belong to: give --base...
    """
    config, tokenizer = _config(source, base, encoder)
    model = _model(config)
    kind = "quick_gelu" if config["model_cfg"].get("quick_gelu") else "gelu"
    Activation(kind, "the CLIP that --base or --encoder describes").check(source.name)
    weights, kept = _whole(model, source, base)
    return LibraryFolder(
        "open_clip",
        weights,
        "open_clip_model.safetensors",
        {OPEN_CLIP_CONFIG: as_json(config)},
        tuple(tokenizer),
        tuple(kept),
    )


def _config(
    source: Given, base: Given | None, encoder: EncoderOptions | None
) -> tuple[dict[str, Any], list[Path]]:
    """Return the content of open_clip_config.json, and the files of a tokenizer of its own."""
    given = [base, source] if base is not None else [source]
    for one in given:
        if one.holds("open_clip"):
            assert one.folder is not None
            own = [f for f in companions(one.folder) if "config" not in f.name]
            own += [f for f in companions(one.folder) if f.name == "tokenizer_config.json"]
            return one.open_clip_fields(), own
    if encoder is not None and issubclass(encoder.kind, OpenClipEncoder):
        return _of_encoder(encoder), []
    for one in given:
        if one.holds("transformers") and one.fields("config.json")["model_type"] == "clip":
            return _of_transformers(one), []
    raise no_description("open_clip", source, "OpenClipEncoder")


def _of_encoder(encoder: EncoderOptions) -> dict[str, Any]:
    """Describe open_clip's own model; nothing is downloaded."""
    import open_clip

    name, size = encoder.get("name"), encoder.get("image_size")
    model, preprocess = described(encoder)
    if open_clip.get_model_config(name)["text_cfg"].get("hf_model_name"):
        raise InputError(
            f"encoder.name={name!r} has a text tower of transformers, which this folder would not "
            "hold: give --base, a folder or repository of open_clip"
        )
    if size is not None:
        model["vision_cfg"]["image_size"] = size
    return {"model_cfg": model, "preprocess_cfg": preprocess_for_open_clip(preprocess)}


def described(encoder: EncoderOptions) -> tuple[dict[str, Any], ImagePreprocess]:
    """Return open_clip's `model_cfg` of an encoder, and its preprocessing; nothing is downloaded.

    Raises:
        InputError: See `OpenClipEncoder`.

    Examples:
        >>> model, preprocess = described(EncoderOptions(OpenClipEncoder, {"name": "ViT-B-16"}))
        >>> model["embed_dim"], preprocess.size
        (512, 224)
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    name, size = encoder.get("name"), encoder.get("image_size")
    tag = tag_config(name, encoder.get("pretrained"))
    model = open_clip.get_model_config(name)
    own = merge_preprocess_dict(asdict(PreprocessCfg()), tag)
    own["size"] = model["vision_cfg"].get("image_size", 224)
    return model, ImagePreprocess.from_open_clip(own).at(size)


def _of_transformers(given: Given) -> dict[str, Any]:
    """Describe a CLIP of transformers for open_clip."""
    from transformers import AutoConfig

    assert given.folder is not None
    config = AutoConfig.from_pretrained(str(given.folder), local_files_only=True)
    preprocess = preprocess_of(given.folder, config.vision_config.image_size)
    return {
        "model_cfg": for_open_clip(config),
        "preprocess_cfg": preprocess_for_open_clip(preprocess),
    }


def _model(config: dict[str, Any]) -> nn.Module:
    """Build the network of a folder with this configuration, of random weights."""
    import open_clip

    if not hasattr(open_clip.factory, "parse_model_name"):
        raise InputError(
            f"to='open_clip': open_clip {open_clip.__version__} cannot load folders: "
            "pip install 'open_clip_torch>=3'"
        )
    with TemporaryDirectory() as folder:
        Path(folder, OPEN_CLIP_CONFIG).write_text(as_json(config), encoding="utf-8")
        with quiet():
            return open_clip.create_model(f"local-dir:{folder}", load_weights=False)


def _whole(model: nn.Module, source: Given, base: Given | None) -> Completed:
    """Return the whole CLIP, of the source and what only the base has."""
    if base is not None:
        return completed(fitting(model, base.name), source.weights)
    try:
        return Completed(fitting(model, source.name), [])
    except InputError as fault:
        if not _is_tower(model, source):
            raise
        raise InputError(
            f"source={source.name!r} is a visual tower, and a folder of open_clip holds a whole "
            "CLIP: give --base, the weights of the CLIP that it comes from"
        ) from fault


def _is_tower(model: nn.Module, source: Given) -> bool:
    try:
        fitting(model.get_submodule("visual"), source.name)
    except InputError:
        return False
    return True
