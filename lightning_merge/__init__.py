"""Merge fine-tuned experts of one pretrained network into a single network."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_merge.core.m_loss import expected_m_loss

__all__ = ["expected_m_loss"]
__version__ = "0.1.0"

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "callbacks" / "__init__.py").is_file():
    # A checkout keeps lightning_merge.callbacks in the top-level folder callbacks/.
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for, so that `--help` need not wait."""
    if name == "expected_m_loss":
        from lightning_merge.core.m_loss import expected_m_loss

        return expected_m_loss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
