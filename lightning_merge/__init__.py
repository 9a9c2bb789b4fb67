"""Merge fine-tuned experts of one pretrained network into a single network."""

from pathlib import Path

__version__ = "0.1.0"

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "callbacks" / "__init__.py").is_file():
    # A checkout keeps lightning_merge.callbacks in the top-level folder callbacks/.
    __path__.append(str(_root))
