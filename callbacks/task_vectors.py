"""Learn coefficients of task vectors that were pruned or trimmed before."""

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

    Several of these apply in the order of `trainer.callbacks`, after the module's own transforms.
    Merging callbacks of the same run are not affected.

    Args:
        transform: Of the task vectors.
        final_scale: What the learned coefficients of every layer are multiplied by at the end.

    Examples:
        >>> TransformTaskVectors(TrimAndElect(density=0.2)).described()
        "TrimAndElect(density=0.2, trim='global') x 1.0"
    """

    def __init__(self, transform: Transform, final_scale: float = 1.0) -> None:
        self.transform, self.final_scale = transform, final_scale

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Tell the module, before it opens the experts."""
        super().setup(trainer, pl_module, stage)
        if isinstance(pl_module, CoefficientModule):  # and not the comparison's
            with Ranks.of(trainer).agreed():
                pl_module.transform(self.transform, self.final_scale)

    def described(self) -> str:
        """Return what this makes of the learned network, and its code, as it is recorded."""
        code = code_of(self, self.transform, *parts(self.transform))
        return f"{self.transform!r} x {self.final_scale}" + (f", {code}" if code else "")


class PruneTaskVectors(TransformTaskVectors):
    """LwPTV in front of learning: prune layers, and damp the coefficients of every layer.

    Layer-wise coefficients are multiplied by the prune ratio eta when they are learned, task-wise
    ones stay (Zhang et al. 2025, Algorithm 1, lines 12 to 15).

    Args:
        prune: LwPTV with its hyperparameters.
        rescale: Multiply by eta; False is the paper's ablation.

    Examples:
        >>> PruneTaskVectors(LwPTV(prune_ratio=0.5)).final_scale
        0.5
    """

    def __init__(self, prune: LwPTV | None = None, rescale: bool = True) -> None:
        prune = prune or LwPTV()
        super().__init__(prune, prune.prune_ratio if rescale and prune.prune_ratio else 1.0)


class TrimTaskVectors(TransformTaskVectors):
    """TIES in front of learning, which makes AdaMerging AdaMerging++.

    Args:
        trim: Trimming and election of signs with their hyperparameters.

    Examples:
        >>> TrimTaskVectors().transform
        TrimAndElect(density=0.2...)
    """

    def __init__(self, trim: TrimAndElect | None = None) -> None:
        super().__init__(trim or TrimAndElect())
