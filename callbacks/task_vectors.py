"""Prune or trim task vectors before their coefficients are learned."""

from typing import Any

from lightning.pytorch import Trainer

from lightning_merge.callbacks.checked import CoefficientCallback
from lightning_merge.core.checkpoints.digests import code_of
from lightning_merge.core.ranks import Ranks
from lightning_merge.methods import LwPTV, TrimAndElect
from lightning_merge.methods.base import Transform
from lightning_merge.methods.parts import parts
from lightning_merge.modules.coefficients import CoefficientModule


class TransformTaskVectors(CoefficientCallback):
    """Transform the task vectors before coefficients are learned.

    Several such callbacks apply in the order of `trainer.callbacks`, after the module's own
    transforms. Merge callbacks of the same run are not affected.

    Args:
        transform: Transform of the task vectors.
        final_scale: Factor applied to the learned coefficients of every layer at the end.

    Examples:
        >>> TransformTaskVectors(TrimAndElect(density=0.2)).described()
        "TrimAndElect(density=0.2, trim='global') x 1.0"
    """

    def __init__(self, transform: Transform, final_scale: float = 1.0) -> None:
        self.transform, self.final_scale = transform, final_scale

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Register the transform with the module before it opens the experts."""
        super().setup(trainer, pl_module, stage)
        if isinstance(pl_module, CoefficientModule):  # not the module of the comparison
            with Ranks.of(trainer).agreed():
                pl_module.transform(self.transform, self.final_scale)

    def described(self) -> str:
        """Return the transform, the scale and a hash of user code, for the record of the run."""
        code = code_of(self, self.transform, *parts(self.transform))
        return f"{self.transform!r} x {self.final_scale}" + (f", {code}" if code else "")


class PruneTaskVectors(TransformTaskVectors):
    """LwPTV before learning: prune layers, then scale down the learned coefficients.

    After learning, layer-wise coefficients are multiplied by the prune ratio eta; task-wise
    coefficients are left as they are (Zhang et al. 2025, Algorithm 1, lines 12 to 15).

    Args:
        prune: LwPTV with its hyperparameters.
        rescale: Multiply by eta; False gives the paper's ablation.

    Examples:
        >>> PruneTaskVectors(LwPTV(prune_ratio=0.5)).final_scale
        0.5
    """

    def __init__(self, prune: LwPTV | None = None, rescale: bool = True) -> None:
        prune = prune or LwPTV()
        super().__init__(prune, prune.prune_ratio if rescale and prune.prune_ratio else 1.0)


class TrimTaskVectors(TransformTaskVectors):
    """TIES before learning, which turns AdaMerging into AdaMerging++.

    Args:
        trim: Trimming and sign election, with their hyperparameters.

    Examples:
        >>> TrimTaskVectors().transform
        TrimAndElect(density=0.2...)
    """

    def __init__(self, trim: TrimAndElect | None = None) -> None:
        super().__init__(trim or TrimAndElect())
