"""A network as transformers keeps it in a folder or repository of the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch

from lightning_merge.core.checkpoints.checkpoint import Checkpoint, spelled_as
from lightning_merge.core.checkpoints.library import OPEN_CLIP_CONFIG, companions
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.completed import completed
from lightning_merge.models.activation import Activation
from lightning_merge.models.clip_configs import for_transformers, preprocess_for_transformers
from lightning_merge.models.encoder_options import EncoderOptions
from lightning_merge.models.from_open_clip import OpenClipEncoder
from lightning_merge.models.image_preprocess import ImagePreprocess
from lightning_merge.models.library_folder import (
    Given,
    LibraryFolder,
    as_json,
    no_description,
)
from lightning_merge.models.loading import fitting
from lightning_merge.models.t5 import UNUSED
from lightning_merge.models.to_open_clip import described

_MARK = "vision_model.pre_layrnorm.weight"


def to_transformers(
    source: Given, base: Given | None, encoder: EncoderOptions | None
) -> LibraryFolder:
    """Return a network as a folder that `from_pretrained(FOLDER)` loads.

    Any network of transformers needs a folder that describes it: the base's, the source's, or
    that from which the encoder is made. Configuration and tokenizer are copied from there, and so
    are tensors that the source lacks. A CLIP of open_clip is translated; with its text tower it
    becomes a `CLIPModel`, alone a `CLIPVisionModelWithProjection`.

    Args:
        source: Weights of the network or of a part of it.
        base: The network that they come from.
        encoder: Encoder of transformers or open_clip, and its options.

    Raises:
        InputError: Nothing describes the network, or weights do not fit it.

    Examples:
        >>> from lightning_merge.core.checkpoints.checkpoint import as_checkpoint
        >>> to_transformers(Given("merged.safetensors", as_checkpoint({}), None), None, None)
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: source='merged.safetensors': nothing says which
        network of transformers these weights belong to: give --base...
    """
    for given in (base, source, _source_of(encoder)):
        if given is not None and given.holds("transformers"):
            return _like(given, source)
    if found := _open_clip(source, base, encoder):
        return _translated(*found, source, base)
    raise no_description("transformers", source, "TransformersEncoder")


def _source_of(encoder: EncoderOptions | None) -> Given | None:
    """Return the network from which an encoder is made."""
    if encoder is None or encoder.kind.library != "transformers":
        return None
    own = encoder.get("source")
    if isinstance(own, Mapping):
        raise InputError(
            "encoder.source is given by its fields: give --base, a folder of transformers with "
            "config.json"
        )
    if encoder.options.get("tokenizer") is not None:
        raise InputError(
            f"encoder.tokenizer={encoder.get('tokenizer')!r} lies apart from the network: give "
            "--base, a folder with config.json, weights and this tokenizer"
        )
    projection = encoder.options.get("projection")
    return Given.open(projection or own, "--encoder." + ("projection" if projection else "source"))


def _like(model: Given, source: Given) -> LibraryFolder:
    """Return the source in a folder like another one of transformers."""
    assert model.folder is not None
    stored = spelled_as(model.weights, [_MARK])
    stored = stored.renamed({n: n for n in stored if not n.endswith(UNUSED)})
    fields = model.fields("config.json")
    if (kind := _activation(fields)) is not None:
        Activation(kind, f"{model.name}").check(source.name)
    own = source.weights.renamed({n: n for n in source.weights if not n.endswith(UNUSED)})
    weights, kept = completed(stored, own)
    copies = [
        f for f in companions(model.folder) if f.name not in ("config.json", OPEN_CLIP_CONFIG)
    ]
    kinds = fields.get("architectures") or ["AutoModel"]
    return LibraryFolder(
        "transformers",
        weights,
        texts={"config.json": as_json(_typed(fields, weights))},
        copies=tuple(copies),
        kept=tuple(kept),
        kind=kinds[0],
    )


def _activation(fields: Mapping[str, Any]) -> str | None:
    """Return the activation of a CLIP's visual tower; None for any other network."""
    kind = fields.get("model_type")
    vision = fields.get("vision_config", {}) if kind == "clip" else fields
    found = vision.get("hidden_act", "quick_gelu") if str(kind).startswith("clip") else None
    return found if isinstance(found, str) else None


def _typed(fields: Mapping[str, Any], weights: Checkpoint) -> dict[str, Any]:
    """Return a configuration with the type that holds all weights, as the library would round."""
    types = [weights.dtype(name) for name in weights if weights.dtype(name).is_floating_point]
    name = str(reduce(torch.promote_types, types)).removeprefix("torch.") if types else None

    def typed(value: Any, key: str = "") -> Any:
        if key in ("dtype", "torch_dtype") and isinstance(value, str) and name:
            return name
        return {k: typed(v, k) for k, v in value.items()} if isinstance(value, dict) else value

    return {key: typed(value, key) for key, value in fields.items()}


def _open_clip(
    source: Given, base: Given | None, encoder: EncoderOptions | None
) -> tuple[dict[str, Any], ImagePreprocess] | None:
    """Return open_clip's description of a CLIP, if one is given."""
    for given in (base, source):
        if given is not None and given.holds("open_clip"):
            found = given.open_clip_fields()
            model = found["model_cfg"]
            size = model["vision_cfg"].get("image_size", 224)
            own = {"interpolation": "bicubic", "resize_mode": "shortest"}
            own |= {"size": size, **found.get("preprocess_cfg", {})}
            return model, ImagePreprocess.from_open_clip(own)
    if encoder is not None and issubclass(encoder.kind, OpenClipEncoder):
        model, preprocess = described(encoder)
        model["vision_cfg"]["image_size"] = preprocess.size
        return model, preprocess
    return None


def _translated(
    model: Mapping[str, Any], preprocess: ImagePreprocess, source: Given, base: Given | None
) -> LibraryFolder:
    """Return a CLIP of open_clip as one of transformers."""
    import transformers

    config = for_transformers(model)
    Activation(config["vision_config"]["hidden_act"], "this CLIP").check(source.name)
    kept: list[str] = []
    weights = spelled_as(source.weights, [_MARK])
    if base is not None:
        weights, kept = completed(spelled_as(base.weights, [_MARK]), source.weights)
    whole = any("text_model.encoder." in name for name in weights)
    if whole:
        texts = _tokenizer(int(config["text_config"]["max_position_embeddings"]))
    else:
        texts, config = {}, config["vision_config"]
    kind = "CLIPModel" if whole else "CLIPVisionModelWithProjection"
    build = getattr(transformers, kind)
    with torch.device("meta"):
        network = build(build.config_class(**config))
    own = fitting(network, weights)
    config = {"architectures": [kind], **config}
    texts |= {
        "config.json": as_json(config),
        "preprocessor_config.json": as_json(preprocess_for_transformers(preprocess)),
    }
    return LibraryFolder("transformers", own, texts=texts, kept=tuple(kept), kind=kind)


def _tokenizer(length: int) -> dict[str, str]:
    """Return the files of CLIP's tokenizer for transformers, made of open_clip's vocabulary."""
    from open_clip.tokenizer import SimpleTokenizer

    own = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    words = {names.get(word, word): number for word, number in own.encoder.items()}
    merges = [" ".join(pair) for pair in own.bpe_ranks]
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length}
    return {
        "vocab.json": json.dumps(words, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "tokenizer_config.json": as_json(about),
    }
