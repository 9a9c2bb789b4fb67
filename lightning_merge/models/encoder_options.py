"""An encoder as its class and options, from which a network can be described but is not built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_merge.core.errors import InputError
from lightning_merge.models.encoder import Encoder

_LEVELS = 3  # folders above a run's weights, at most, that may be the run's


class EncoderOptions(NamedTuple):
    """The class of an encoder and the options that it is built with.

    Attributes:
        kind: The class.
        options: Options of the constructor that were given.

    Examples:
        >>> from lightning_merge.models import OpenClipEncoder
        >>> EncoderOptions(OpenClipEncoder, {"name": "ViT-B-16"}).get("pretrained") is None
        True
    """

    kind: type[Encoder]
    options: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """Return an option of the constructor, given or by default; empty text counts as None."""
        default = inspect.signature(self.kind).parameters[name].default
        return self.options.get(name, default) or None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> EncoderOptions:
        """Read the entry of a config, {class_path: ..., init_args: {...}}.

        Raises:
            InputError: There is no such class, or it is not an encoder.

        Examples:
            >>> EncoderOptions.of({"class_path": "TimmEncoder"}).kind.__name__
            'TimmEncoder'
        """
        path = str(config.get("class_path", ""))
        module, _, name = path.rpartition(".")
        try:
            kind = getattr(import_module(module or "lightning_merge.models"), name, None)
        except ImportError as fault:
            raise InputError(f"encoder: class_path={path!r} cannot be imported: {fault}") from None
        if not (isinstance(kind, type) and issubclass(kind, Encoder)):
            raise InputError(f"encoder: class_path={path!r} is not an encoder")
        return cls(kind, config.get("init_args") or {})


def encoder_of_run(file: Path) -> EncoderOptions | None:
    """Return the encoder of the run whose folder holds a file; None if there is no such folder.

    Args:
        file: Weights that a run has written, such as RUN/merged/ties.safetensors.

    Examples:
        >>> config = "model: {init_args: {encoder: {class_path: lightning_merge.models.MiniViT}}}"
        >>> Path("run/merged").mkdir(parents=True)
        >>> _ = Path("run/config.yaml").write_text(config)
        >>> encoder_of_run(Path("run/merged/ties.safetensors")).kind.__name__
        'MiniViT'
    """
    for folder in file.absolute().parents[:_LEVELS]:
        content = _content(folder / "config.yaml")
        found = _part(_part(_part(content, "model"), "init_args"), "encoder")
        if found := found or _part(content, "encoder"):  # of fit, or of tune
            try:
                return EncoderOptions.of(found)
            except InputError:  # the config of something else
                return None
    return None


def _part(value: Any, key: str) -> Mapping[str, Any]:
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _content(config: Path) -> Any:
    try:
        return yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None  # whatever lies there is not the config of a run
