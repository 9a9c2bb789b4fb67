"""Merge fine-tuned experts of one pretrained network into a single network.

Methods and transforms merge mappings of tensors; `merge` is the command of that name, from files
to a file; `open_checkpoint` reads a file's tensors when they are asked for. All come with the
first use of their names, so that `import lightning_merge` does not wait for torch.

Examples:
    >>> import torch
    >>> import lightning_merge as lm
    >>> base = {"weight": torch.zeros(4)}
    >>> mnist = {"weight": torch.tensor([1.0, -1.0, 0.5, 0.0])}
    >>> cars = {"weight": torch.tensor([3.0, 1.0, 0.0, 0.0])}
    >>> lm.TaskArithmetic(scale=0.5)(base, {"mnist": mnist, "cars": cars})["weight"]
    tensor([2.0000, 0.0000, 0.2500, 0.0000])

    >>> for name, weights in {"base": base, "mnist": mnist, "cars": cars}.items():
    ...     _ = lm.save_checkpoint(weights, f"{name}.safetensors")
    >>> experts = {"mnist": "mnist.safetensors", "cars": "cars.safetensors"}
    >>> lm.merge("base.safetensors", experts, lm.Average(), output="merged.safetensors")
    merged.safetensors: 1 tensors of 2 experts merged, 0 of the base copied, in ... s
    ...
    >>> lm.open_checkpoint("merged.safetensors")["weight"]
    tensor([2.0000, 0.0000, 0.2500, 0.0000])
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_merge.cli.merge import merge_files as merge
    from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
    from lightning_merge.core.checkpoints.provenance import verify_provenance
    from lightning_merge.core.networks.m_loss import expected_m_loss
    from lightning_merge.methods import (
        EMR,
        PCB,
        TSVM,
        AbsolutePruning,
        Average,
        Consensus,
        Dare,
        Ensemble,
        Fisher,
        IsoC,
        IsoCTS,
        KnOTS,
        LearnedCoefficients,
        LiNeS,
        LwPTV,
        MagnitudePruning,
        MDare,
        MergeMethod,
        Method,
        ModelStock,
        MTies,
        MTiesAnalysis,
        NetworkMethod,
        RandomLayers,
        RandomPruning,
        Recentre,
        RegMean,
        RegMeanPlusPlus,
        Resources,
        Surgery,
        TaskArithmetic,
        TaskNetwork,
        Ties,
        Transform,
        TrimAndElect,
        WEMoE,
        WiSEFT,
        registered,
    )

__all__ = [
    "EMR",
    "PCB",
    "TSVM",
    "AbsolutePruning",
    "Average",
    "Consensus",
    "Dare",
    "Ensemble",
    "Fisher",
    "IsoC",
    "IsoCTS",
    "KnOTS",
    "LearnedCoefficients",
    "LiNeS",
    "LwPTV",
    "MDare",
    "MTies",
    "MTiesAnalysis",
    "MagnitudePruning",
    "MergeMethod",
    "Method",
    "ModelStock",
    "NetworkMethod",
    "RandomLayers",
    "RandomPruning",
    "Recentre",
    "RegMean",
    "RegMeanPlusPlus",
    "Resources",
    "Surgery",
    "TaskArithmetic",
    "TaskNetwork",
    "Ties",
    "Transform",
    "TrimAndElect",
    "WEMoE",
    "WiSEFT",
    "expected_m_loss",
    "merge",
    "open_checkpoint",
    "registered",
    "save_checkpoint",
    "verify_provenance",
]
__version__ = "0.1.0"

_ELSEWHERE = {
    "expected_m_loss": ("lightning_merge.core.networks.m_loss", "expected_m_loss"),
    "merge": ("lightning_merge.cli.merge", "merge_files"),
    "open_checkpoint": ("lightning_merge.core.checkpoints.checkpoint", "open_checkpoint"),
    "save_checkpoint": ("lightning_merge.core.checkpoints.checkpoint", "save_checkpoint"),
    "verify_provenance": ("lightning_merge.core.checkpoints.provenance", "verify_provenance"),
}
"""Names that are not from `lightning_merge.methods` -> module, and name there."""

_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "callbacks" / "__init__.py").is_file():
    # A checkout keeps lightning_merge.callbacks in the top-level folder callbacks/.
    __path__.append(str(_root))


if not TYPE_CHECKING:  # for which an unknown name is an error

    def __getattr__(name: str) -> Any:
        """Import a name of `__all__` when it is first asked for."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, original = _ELSEWHERE.get(name, ("lightning_merge.methods", name))
        return getattr(import_module(module), original)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
