"""CLIP visual towers of transformers, as FusionBench publishes experts on the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_merge.core.checkpoint import open_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.preprocess import Preprocess

_PROJECTION = "visual_projection.weight"
_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


class VisionTower(nn.Module):
    """A CLIP vision transformer that returns its pooled output [n, width].

    Its tensors have the names of published files (``vision_model.encoder.layers.0...``),
    which ``CLIPVisionModel`` itself has in transformers 4 but not in 5.
    """

    def __init__(self, config: Any) -> None:
        from transformers import CLIPVisionModel

        super().__init__()
        model = CLIPVisionModel(config)
        self.vision_model = getattr(model, "vision_model", model)

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised class token [n, width] of images [n, 3, s, s]."""
        return self.vision_model(pixel_values=images).pooler_output


class TransformersEncoder(Encoder):
    """CLIP visual tower of transformers: a repository on the Hub, a folder or a configuration.

    FusionBench names its experts ``tanganke/clip-vit-base-patch32_<task>`` (also
    ``-patch16_`` and ``clip-vit-large-patch14_``), with task one of sun397, stanford-cars,
    resisc45, eurosat, svhn, gtsrb, mnist, dtd; their base is ``openai/clip-vit-base-patch32``.
    The experts are vision models alone. Zero-shot text heads compare *projected* features, and
    the projection was frozen while the experts were trained, so it stays outside ``backbone``
    and is never merged: build the encoder from the base, which has it, and load experts into
    it, or name the base as ``projection``.

    Args:
        source: Repository on the Hub, folder with ``config.json``, or the fields of a
            ``CLIPVisionConfig`` for an untrained tower.
        projection: Repository, folder or file with ``visual_projection.weight``, if the
            source has none. Without any, the features are the pooled output.
        weights: File or folder of weights to use instead of the source's own.

    Raises:
        InputError: If the source cannot be had or is not a CLIP model, or the weights are of
            another architecture.
    """

    projection: Tensor | None

    def __init__(
        self,
        source: str | Path | Mapping[str, Any] = "openai/clip-vit-base-patch32",
        projection: str | Path | None = None,
        weights: str | Path | None = None,
    ) -> None:
        folder = None if isinstance(source, Mapping) else _folder("source", source)
        config = _config(source if folder is None else folder)  # type: ignore[arg-type]
        matrix = _projection(projection or folder, required=projection is not None)
        dim = config.hidden_size if matrix is None else matrix.shape[0]
        super().__init__(VisionTower(config), _preprocess(folder, config.image_size), dim)
        self.register_buffer("projection", matrix)
        if (stored := weights or folder) is not None:
            self.load(stored)

    def project(self, pooled: Tensor) -> Tensor:
        """Apply the visual projection, where there is one."""
        return pooled if self.projection is None else F.linear(pooled, self.projection)


def _folder(argument: str, source: str | Path) -> Path:
    """Return the local folder of a source, downloading a repository once."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    described = ["config.json", "preprocessor_config.json"]
    try:
        patterns = [*described, "model*.safetensors*"]
        folder = Path(snapshot_download(str(source), allow_patterns=patterns))
        if not list(folder.glob("model*.safetensors")):  # OpenAI's own has a pickle alone
            patterns = [*described, "pytorch_model*"]
            folder = Path(snapshot_download(str(source), allow_patterns=patterns))
    except (OSError, HFValidationError) as error:
        raise InputError(
            f"{argument}={str(source)!r} is no folder here, and it cannot be had from the Hub "
            f"({error}). Give a folder with config.json and model.safetensors, or go online once."
        ) from error
    return folder


def _config(source: Path | Mapping[str, Any]) -> Any:
    """Make the configuration of the vision tower, or read it from a folder."""
    from transformers import CLIPVisionConfig

    if isinstance(source, Mapping):
        return CLIPVisionConfig(**source)
    file = source / "config.json"
    if not file.is_file():
        raise InputError(f"source={source}: there is no config.json in it.")
    kind = json.loads(file.read_text()).get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise InputError(f"source={source}: model_type is {kind!r}, only CLIP is supported.")
    return CLIPVisionConfig.from_pretrained(source)


def _projection(source: str | Path | None, *, required: bool) -> Tensor | None:
    """Read the projection [dim, width] of a source, or None where it has none."""
    if source is None:
        return None
    checkpoint = open_checkpoint(
        source if Path(source).is_file() else _folder("projection", source)
    )
    if _PROJECTION in checkpoint:
        return checkpoint[_PROJECTION].float()
    if required:
        raise InputError(f"projection={source}: there is no tensor {_PROJECTION} in it.")
    return None


def _preprocess(folder: Path | None, size: int) -> Preprocess:
    """Read the preprocessing of a folder; published experts without one use CLIP's."""
    file = folder / "preprocessor_config.json" if folder else None
    given = json.loads(file.read_text()) if file and file.is_file() else {"size": size}
    return Preprocess.from_transformers({**_CLIP, "crop_size": given["size"], **given})
