"""Configs of `fit` that share data and a base, and configs laid over each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lightning_merge.core.checkpoints.files import read_text
from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.errors import InputError

Config = dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """Configs of `fit` that share data and a base.

    Attributes:
        folder: Folder of the configs, such as configs/imagenet.
        config: Which of them rows are laid over if they name none, without .yaml.
        over: Name of a config -> what is laid over it for every row.
        options: Options of `fit` for every run, such as data.root.

    Examples:
        >>> Suite("configs/mini").config
        'sml'
    """

    folder: str
    config: str = "sml"
    over: dict[str, dict[str, Any]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, given: Mapping[str, Any]) -> "Suite":
        """Return a suite from its options.

        Args:
            name: Name of the suite, for messages.
            given: Its options.

        Raises:
            InputError: There is no folder, or an option that does not exist.
        """
        known = [entry.name for entry in fields(cls)]
        if "folder" not in given or (unknown := [key for key in given if key not in known]):
            what = "has no folder" if "folder" not in given else f"unknown option {unknown[0]!r}"
            raise InputError(f"suites.{name}: {what}; give {enumerate_names(known)}")
        for key in ("over", "options"):
            mapping(given.get(key, {}), f"suites.{name}.{key}")
        for key in ("folder", "config"):
            if not isinstance(given.get(key, ""), str):
                raise InputError(f"suites.{name}.{key}={given[key]!r}: give text")
        return cls(**given)

    def whole(self, name: str) -> Config:
        """Return one of the configs with what is laid over it.

        Raises:
            InputError: There is no such config, or it is not YAML.
        """
        file = self.file(name)
        if not file.is_file():
            raise InputError(f"suites: {file} does not exist; give a folder of configs of fit")
        return laid(_content(file), mapping(self.over.get(name, {}), f"over.{name}"))

    def file(self, name: str) -> Path:
        """Return the file of one of the configs."""
        return Path(self.folder) / f"{name}.yaml"


def _content(file: Path) -> Config:
    """Return the config of a file."""
    try:
        return mapping(yaml.safe_load(read_text(file)), str(file))
    except yaml.YAMLError as fault:
        raise InputError(f"suites: {file} is not YAML: {fault}") from None


def mapping(value: Any, where: str) -> Config:
    """Return a mapping, an empty one for nothing at all.

    Args:
        value: What a config has.
        where: Its place, for messages.

    Raises:
        InputError: It is something else.

    Examples:
        >>> mapping(None, "rows")
        {}
        >>> mapping([1], "rows")
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: rows=[1]: give a mapping
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{where}={value!r}: give a mapping")
    return value


def laid(below: Config, above: Config) -> Config:
    """Return a config laid over another, mapping by mapping.

    Examples:
        >>> laid({"model": {"a": 1, "b": 2}}, {"model": {"b": 3}})
        {'model': {'a': 1, 'b': 3}}
    """
    both = {
        key: laid(below[key], value)
        if isinstance(value, dict) and isinstance(below.get(key), dict)
        else value
        for key, value in above.items()
    }
    return {**below, **both}
