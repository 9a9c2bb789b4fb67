"""Folders in which open_clip, timm and transformers keep a network, told by their configuration."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from lightning_merge.core.checkpoints.hub import COMPANIONS

Library = Literal["open_clip", "transformers", "timm"]
OPEN_CLIP_CONFIG = "open_clip_config.json"


def libraries_of(folder: Path) -> list[Library]:
    """Return the libraries whose configuration a folder holds.

    Examples:
        >>> Path("described").mkdir()
        >>> _ = Path("described/config.json").write_text('{"architecture": "resnet50"}')
        >>> libraries_of(Path("described"))
        ['timm']
    """
    found: list[Library] = []
    fields = fields_of(folder / "config.json")
    if (folder / OPEN_CLIP_CONFIG).is_file():
        found.append("open_clip")
    if "model_type" in fields:
        found.append("transformers")
    if "architecture" in fields:
        found.append("timm")
    return found


def companions(folder: Path) -> list[Path]:
    """Return the files of a folder that the Hub's libraries read besides weights.

    Examples:
        >>> Path("net").mkdir()
        >>> for name in ("config.json", "model.safetensors", "notes.txt"):
        ...     Path("net", name).touch()
        >>> [file.name for file in companions(Path("net"))]
        ['config.json']
    """
    files = (file for file in sorted(folder.iterdir()) if file.is_file())
    return [f for f in files if any(fnmatchcase(f.name, pattern) for pattern in COMPANIONS)]


def loading(
    library: Library, place: str | Path, kind: str = "AutoModel", *, hub: bool = False
) -> str:
    """Return the Python expression that loads a network from a library's folder.

    Args:
        library: The library.
        place: Its folder, or a repository.
        kind: Class of the network in transformers.
        hub: Whether it is a repository.

    Examples:
        >>> loading("timm", "net")
        "timm.create_model('local-dir:net', pretrained=True)"
    """
    if library == "transformers":
        return f"transformers.{kind}.from_pretrained({str(place)!r})"
    source = f"{'hf-hub' if hub else 'local-dir'}:{place}"
    trained = ", pretrained=True" if library == "timm" else ""
    return f"{library}.create_model({source!r}{trained})"


def fields_of(file: Path) -> dict[str, Any]:
    """Return the fields of a JSON file; empty if it is missing or broken.

    Code that needs the file reports what is wrong with it.

    Examples:
        >>> fields_of(Path("missing.json"))
        {}
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
