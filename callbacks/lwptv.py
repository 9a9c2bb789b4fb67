"""LwPTV at the end of fit, before any merge method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lightning_merge.callbacks.merge import MergeCallback
from lightning_merge.core.ranks import Ranks
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.evaluation.figures import lwptv_figure
from lightning_merge.methods import LwPTV, TaskArithmetic
from lightning_merge.methods.base import MergeMethod
from lightning_merge.methods.parts import with_transforms
from lightning_merge.modules.coefficients import CoefficientModule


class LwPTVMerge(MergeCallback):
    """Prune layers of the task vectors, then merge by any method; draw scores and masks.

    Args:
        method: Merge method for the pruned task vectors; by default task arithmetic.
        prune: LwPTV with its hyperparameters.
        name: Name of the table row and of the file.
        grid: Hyperparameter of the method -> values to choose from on the held-out images.

    Examples:
        >>> from lightning_merge.methods import Ties
        >>> LwPTVMerge(Ties(), LwPTV(prune_ratio=0.5)).method.transforms
        (LwPTV(prune_ratio=0.5, ...),)
    """

    def __init__(
        self,
        method: MergeMethod | None = None,
        prune: LwPTV | None = None,
        name: str = "lwptv",
        grid: Mapping[str, Sequence[int | float]] | None = None,
    ) -> None:
        self.prune = prune or LwPTV()
        super().__init__(with_transforms(method or TaskArithmetic(), [self.prune]), name, grid)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Merge, register the candidate, and draw the masks, which the grid does not change."""
        super().on_fit_end(trainer, pl_module)
        if self.prune.granularity == "parameter":  # no layer scores to draw
            return
        figure = pl_module.figure_file(self.name)
        Ranks.of(trainer).once(lambda: self._draw_masks(pl_module, figure))

    def _draw_masks(self, module: CoefficientModule, path: Path) -> None:
        """Draw the score of every task and layer, and the resulting masks."""
        vectors = TaskVectors(module.base, module.experts, scope="changed")
        scores = self.prune.scores(vectors)
        masks = self.prune.task_masks(scores)
        shared = self.prune.shared_mask(masks)
        lwptv_figure(scores.float(), masks, shared, vectors.tasks, vectors.names, path)
