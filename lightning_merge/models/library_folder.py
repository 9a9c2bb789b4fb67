"""Folders in which open_clip, timm and transformers keep a network: what is in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.checkpoint import Checkpoint, open_checkpoint
from lightning_merge.core.checkpoints.library import (
    OPEN_CLIP_CONFIG,
    Library,
    fields_of,
    libraries_of,
)
from lightning_merge.core.errors import InputError
from lightning_merge.models.config_files import read_fields


class LibraryFolder(NamedTuple):
    """A network as a library keeps it in a folder.

    Attributes:
        library: Name of the library.
        weights: All tensors, under the library's names for them.
        file: Name of the file of weights.
        texts: Content of the other files by name.
        copies: Files to copy unchanged.
        kept: Names of the tensors that come from the base.
        kind: Class of the network in transformers.

    Examples:
        >>> LibraryFolder("timm", Checkpoint({})).file
        'model.safetensors'
    """

    library: Library
    weights: Checkpoint
    file: str = "model.safetensors"
    texts: Mapping[str, str] = {}
    copies: tuple[Path, ...] = ()
    kept: tuple[str, ...] = ()
    kind: str = "AutoModel"


class Given(NamedTuple):
    """Weights that were given, and the folder that describes their network.

    Attributes:
        name: As the user gave it.
        weights: The tensors.
        folder: Folder of the weights; None in memory.

    Examples:
        >>> Given("merged.safetensors", Checkpoint({}), None).holds("timm")
        False
    """

    name: str
    weights: Checkpoint
    folder: Path | None

    @classmethod
    def open(cls, name: str, option: str) -> Given:
        """Open a file, folder, repository or package.

        Args:
            name: As in `open_checkpoint`.
            option: The command's option, for messages.

        Raises:
            InputError: See `open_checkpoint`.
        """
        with hub.given_as(option):
            weights = open_checkpoint(name)
        return cls(name, weights, None if weights.path is None else weights.path.parent)

    def holds(self, library: Library) -> bool:
        """Whether the folder describes a network of this library."""
        if self.folder is None:
            return False
        config = self.folder / "config.json"
        if config.is_file() and not fields_of(config):
            self.fields("config.json")  # which says what is wrong with it
        return library in libraries_of(self.folder)

    def fields(self, file: str) -> dict[str, Any]:
        """Return the content of a JSON file of the folder."""
        assert self.folder is not None
        return dict(read_fields(self.folder / file).values)

    def open_clip_fields(self) -> dict[str, Any]:
        """Return what the folder of an open_clip network says of it.

        Raises:
            InputError: It does not describe a CLIP.
        """
        found = self.fields(OPEN_CLIP_CONFIG)
        model = found.get("model_cfg")
        if not isinstance(model, Mapping) or not isinstance(model.get("vision_cfg"), Mapping):
            raise InputError(
                f"{self.name}: its {OPEN_CLIP_CONFIG} has no model_cfg with a vision_cfg; give the "
                "folder of a CLIP"
            )
        return found


def as_json(fields: Mapping[str, Any]) -> str:
    """Return the text of a JSON file.

    Examples:
        >>> print(as_json({"a": 1}), end="")
        {
          "a": 1
        }
    """
    return json.dumps(fields, indent=2) + "\n"


def no_description(library: Library, source: Given, encoder: str) -> InputError:
    """Return the error for weights of which nothing says what network they belong to.

    Examples:
        >>> raise no_description("timm", Given("a.pt", Checkpoint({}), None), "TimmEncoder")
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: source='a.pt': nothing says which network of timm
        these weights belong to: give --base, a folder or repository of timm with its
        configuration, or --encoder TimmEncoder with its options
    """
    return InputError(
        f"source={source.name!r}: nothing says which network of {library} these weights belong "
        f"to: give --base, a folder or repository of {library} with its configuration, or "
        f"--encoder {encoder} with its options"
    )
