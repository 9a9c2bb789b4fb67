"""CLIP visual towers of transformers, as FusionBench publishes experts on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.checkpoint import Checkpoint, open_checkpoint, spelled_as
from lightning_merge.core.errors import InputError, warn
from lightning_merge.models.activation import Activation
from lightning_merge.models.config_files import Fields, read_fields
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.image_preprocess import ImagePreprocess
from lightning_merge.models.loading import CheckpointLike, unknown_name
from lightning_merge.models.memory_format import MemoryFormat

_PROJECTION = "visual_projection.weight"


class VisionTower(nn.Module):
    """A CLIP vision transformer that returns its pooled output [n, width].

    Its tensors have the names of published files (``vision_model.encoder.layers.0...``),
    which ``CLIPVisionModel`` itself has in transformers 4 but not in 5.

    Args:
        config: A ``CLIPVisionConfig``.
        interpolate: Interpolate the position embedding to the size of the images, as the library
            does, instead of refusing images of another size than the configuration's.

    Examples:
        >>> from transformers import CLIPVisionConfig
        >>> sizes = {"hidden_size": 8, "intermediate_size": 16, "image_size": 8, "patch_size": 4}
        >>> config = CLIPVisionConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
        >>> tower = VisionTower(config)
        >>> tower(torch.ones(5, 3, 8, 8)).shape, next(iter(tower.state_dict()))
        (torch.Size([5, 8]), 'vision_model.embeddings.class_embedding')
    """

    def __init__(self, config: Any, interpolate: bool = False) -> None:
        from transformers import CLIPVisionModel

        super().__init__()
        self._options = {"interpolate_pos_encoding": True} if interpolate else {}
        model = CLIPVisionModel(config)
        self.vision_model = getattr(model, "vision_model", model)

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised class token [n, width] of images [n, 3, s, s]."""
        return self.vision_model(pixel_values=images, **self._options).pooler_output


class TransformersEncoder(Encoder):
    """CLIP visual tower of transformers: a repository on the Hub, a folder or a configuration.

    FusionBench names its experts ``tanganke/clip-vit-base-patch32_<task>`` (also
    ``-patch16_`` and ``clip-vit-large-patch14_``), with task one of sun397, stanford-cars,
    resisc45, eurosat, svhn, gtsrb, mnist, dtd; their base is ``openai/clip-vit-base-patch32``.
    The experts are vision models alone. Zero-shot heads compare *projected* features, and the
    projection was frozen while the experts were trained, so it stays outside ``backbone`` and is
    never merged: build the encoder from the base, which has it, and load experts into it, or name
    the base as ``projection``.

    Images are preprocessed as in the folder's ``processor_config.json`` (transformers 5) or
    ``preprocessor_config.json``, and as for OpenAI's CLIP if there is neither.

    Args:
        source: Repository on the Hub, folder with ``config.json``, or the fields of a
            ``CLIPVisionConfig`` for an untrained tower.
        projection: Repository, folder or file with ``visual_projection.weight``, if the source
            has none. Without a projection, the features are the pooled output.
        weights: File or folder of weights to use instead of the source's own.
        image_size: Side of the square input, in pixels; the source's own by default. For another
            one, the library interpolates the position embedding whenever the tower runs, so that
            weights keep their shapes. The shorter side of an image is then resized to it, and no
            further margin is cropped.
        memory_format: Layout of the images: contiguous, channels_last, or auto, channels_last if
            more than half of the parameters are weights of 2-D convolutions.

    Raises:
        InputError: The source cannot be loaded or is not a CLIP model, the tower takes no images of
            this size, one of its files is broken
            or unsupported, or the weights fit another architecture.

    Examples:
        >>> config = {"hidden_size": 8, "intermediate_size": 16, "image_size": 8, "patch_size": 4}
        >>> config |= {"num_hidden_layers": 1, "num_attention_heads": 2}
        >>> encoder = TransformersEncoder(config)
        >>> encoder.preprocess.size, encoder(torch.ones(5, 3, 8, 8)).shape
        (8, torch.Size([5, 8]))
    """

    reads = ("source", "projection", "weights")
    library = "transformers"
    projection: Tensor | None

    def __init__(
        self,
        source: str | Path | Mapping[str, Any] = "openai/clip-vit-base-patch32",
        projection: str | Path | None = None,
        weights: str | Path | None = None,
        image_size: int | None = None,
        memory_format: MemoryFormat = "auto",
    ) -> None:
        folder = None if isinstance(source, Mapping) else _folder("source", source)
        config = _config(source if folder is None else folder)  # type: ignore[arg-type]
        stored = None if isinstance(source, Mapping) else source
        matrix = _projection(projection or stored, required=projection is not None)
        dim = config.hidden_size if matrix is None else matrix.shape[0]
        preprocess = preprocess_of(folder, config.image_size).at(image_size)
        tower = VisionTower(config, interpolate=preprocess.size != config.image_size)
        super().__init__(tower, preprocess, dim, memory_format)
        self.register_buffer("projection", matrix)
        if image_size is not None:
            self.check_size()
        described = "source" if folder is None else f"source={source}"
        self.activation = Activation(config.hidden_act, described)
        if (stored := weights or stored) is not None:
            self.load(stored)

    def fitting(self, source: CheckpointLike) -> Checkpoint:
        """Return the weights of the tower; warn if their projection differs from the encoder's."""
        checkpoint = source if isinstance(source, Mapping) else open_checkpoint(source)
        matrix, own = _stored_projection(checkpoint), getattr(self, "projection", None)
        if matrix is not None and own is not None and not _agree(matrix, own):
            origin = "the given mapping" if isinstance(source, Mapping) else str(source)
            warn(
                f"weights={origin}: its visual projection differs from the encoder's, which is "
                "kept, as it is not part of this backbone; OpenClipEncoder includes it"
            )
        return super().fitting(source)

    def project(self, pooled: Tensor) -> Tensor:
        """Apply the visual projection, if there is one."""
        return pooled if self.projection is None else F.linear(pooled, self.projection)


def _folder(argument: str, source: str | Path) -> Path:
    """Return the local folder of a source, downloading a repository if needed."""
    try:
        folder = hub.local(source)
    except InputError as fault:
        raise InputError(f"{argument}={str(source)!r}: {fault}") from fault
    if not folder.is_dir():
        raise InputError(
            f"{argument}={str(source)!r} is not a local folder; give one with config.json and "
            "model.safetensors, or the name of a repository on the Hub"
        )
    return folder


def _config(source: Path | Mapping[str, Any]) -> Any:
    """Build the configuration of the vision tower from fields or a folder."""
    from transformers import CLIPVisionConfig

    default = CLIPVisionConfig()
    if isinstance(source, Mapping):
        if unknown := sorted(set(source) - set(default.to_dict())):
            raise unknown_name("source", unknown[0], default.to_dict())
        fields = Fields("source", source)
    else:
        fields = _vision_fields(source)
    return CLIPVisionConfig(**_checked(fields, default))


def _vision_fields(folder: Path) -> Fields:
    """Read the fields of the vision tower from a folder's config.json."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"source={folder} has no config.json; give the folder of a CLIP")
    fields = read_fields(file)
    kind = fields.get("model_type", None)
    if kind == "clip_vision_model":
        return fields
    if kind != "clip":
        raise InputError(
            f"{file}: model_type={kind!r}: only clip and clip_vision_model are supported"
        )
    new, old = fields.part("vision_config"), fields.part("vision_config_dict")  # the old one wins
    return Fields(new.file, {**new.values, **old.values})


def _checked(fields: Fields, default: Any) -> dict[str, Any]:
    """Return the checked fields of a vision tower; null and missing ones get defaults."""
    from transformers.activations import ACT2FN

    config: dict[str, Any] = {
        name: fields.whole(name, getattr(default, name), most)
        for name, most in {
            "hidden_size": 1 << 16,
            "intermediate_size": 1 << 18,
            "num_hidden_layers": 1 << 10,
            "num_attention_heads": 1 << 10,
            "projection_dim": 1 << 16,
        }.items()
    }
    config |= {
        name: fields.side(name, getattr(default, name)) for name in ("image_size", "patch_size")
    }
    config |= {
        name: fields.number(name, getattr(default, name))
        for name in ("layer_norm_eps", "attention_dropout")
    }
    config["hidden_act"] = fields.get("hidden_act", default.hidden_act)
    if config["hidden_act"] not in list(ACT2FN):
        raise fields.wrong("hidden_act", f"give one of {', '.join(ACT2FN)}")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise fields.wrong(
            "num_attention_heads", f"it must divide hidden_size={config['hidden_size']}"
        )
    if config["patch_size"] > config["image_size"]:
        raise fields.wrong("patch_size", f"an image has {config['image_size']} pixels along a side")
    if fields.get("num_channels", 3) != 3:
        raise fields.wrong("num_channels", "images have three colours")
    return config


def _projection(source: str | Path | None, *, required: bool) -> Tensor | None:
    """Read the projection [dim, width] of a source; None if it has none."""
    if source is None:
        return None
    if (matrix := _stored_projection(open_checkpoint(source))) is not None:
        return matrix
    if required:
        raise InputError(f"projection={source} has no tensor {_PROJECTION}; give a whole CLIP")
    return None


def _agree(one: Tensor, other: Tensor) -> bool:
    """Return whether two projections are equal up to half precision."""
    return one.shape == other.shape and torch.allclose(one, other.to(one), rtol=2e-3, atol=1e-5)


def _stored_projection(source: Mapping[str, Tensor]) -> Tensor | None:
    """Return the visual projection [dim, width] of a checkpoint, under either library's names."""
    checkpoint = spelled_as(source, ["pre_layrnorm.weight"])
    names = [n for n in checkpoint if n == _PROJECTION or n.endswith(f".{_PROJECTION}")]
    return checkpoint[names[0]].float() if names else None


def preprocess_of(folder: Path | None, size: int) -> ImagePreprocess:
    """Read the preprocessing of a folder of transformers; CLIP's by default.

    Args:
        folder: Folder; None for a network without one.
        size: Side of the images that the network takes, in pixels.

    Raises:
        InputError: A file is broken, unsupported or for images of another size.

    Examples:
        >>> preprocess_of(None, 224).interpolation
        'bicubic'
    """
    processor = None if folder is None else _processor(folder)
    if processor is None:
        return ImagePreprocess.from_transformers({"size": size, "crop_size": size})
    preprocess = ImagePreprocess.from_transformers(processor.values, processor.file)
    if preprocess.size != size:
        raise InputError(
            f"{processor.file}: images of {preprocess.size} pixels (crop_size, or size where they "
            f"are not cropped) do not fit the model, whose config.json has image_size={size}"
        )
    return preprocess


def _processor(folder: Path) -> Fields | None:
    """Return the fields of the image processor that transformers 5 would use."""
    old, new = folder / "preprocessor_config.json", folder / "processor_config.json"
    first = read_fields(old) if old.is_file() else None
    nested = read_fields(new) if new.is_file() else None
    if nested is None or nested.get("image_processor", None) is None:
        return first
    second = nested.part("image_processor")
    parse = ImagePreprocess.from_transformers
    if first is not None and parse(first.values, first.file) != parse(second.values, second.file):
        warn(
            f"{old} and {new} prepare images differently: the latter is followed, as transformers "
            "5 does; remove it to follow the former"
        )
    return second
