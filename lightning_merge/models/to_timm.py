"""A network as timm keeps it in a folder or repository of the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.completed import completed
from lightning_merge.models.encoder_options import EncoderOptions
from lightning_merge.models.from_timm import TimmEncoder
from lightning_merge.models.library_folder import Given, LibraryFolder, as_json, no_description


def to_timm(source: Given, base: Given | None, encoder: EncoderOptions | None) -> LibraryFolder:
    """Return a network as a folder that `timm.create_model("local-dir:FOLDER")` loads.

    The network is that of the base's folder, with its classifier; otherwise that of the source's
    folder or of the encoder, which has none.

    Args:
        source: Weights of the network, with any prefix.
        base: The network that they come from.
        encoder: TimmEncoder and its options.

    Raises:
        InputError: The library is too old, nothing describes the network, or weights do not fit it.

    Examples:
        >>> from lightning_merge.core.checkpoints.checkpoint import as_checkpoint
        >>> to_timm(Given("merged.safetensors", as_checkpoint({}), None), None, None)
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: source='merged.safetensors': nothing says which
        network of timm these weights belong to: give --base...
    """
    _check_version()
    described = next((g for g in (base, source) if g is not None and g.holds("timm")), None)
    if described is not None:
        weights, kept = completed(described.weights, source.weights)
        texts = {"config.json": as_json(described.fields("config.json"))}
        return LibraryFolder("timm", weights, texts=texts, kept=tuple(kept))
    if encoder is None or not issubclass(encoder.kind, TimmEncoder):
        raise no_description("timm", source, "TimmEncoder")
    if base is not None:
        raise InputError(
            f"base={base.name!r} has no configuration of timm, and the encoder says what the "
            "network is: leave it out"
        )
    network = TimmEncoder(**{**encoder.options, "pretrained": False, "weights": None})
    weights = network.fitting(source.name)
    texts = {"config.json": as_json(_config(network.backbone, encoder))}
    return LibraryFolder("timm", weights, texts=texts)


def _check_version() -> None:
    import timm
    from timm.models import _hub

    if not hasattr(_hub, "load_model_config_from_path"):
        raise InputError(
            f"to='timm': timm {timm.__version__} cannot load folders: pip install -U timm"
        )


def _config(network: Any, encoder: EncoderOptions) -> dict[str, Any]:
    """Return timm's own description of a network without classifier."""
    from timm.models._hub import save_config_for_hf

    options = dict(encoder.get("options") or {})
    options.pop("pretrained_cfg_overlay", None)
    with TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        save_config_for_hf(network, str(file), model_args=options)
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
