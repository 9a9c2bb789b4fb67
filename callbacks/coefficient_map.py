"""A heat map of the learned coefficients."""

from typing import Any

import torch
from lightning.pytorch import Trainer

from lightning_merge.callbacks.checked import CoefficientCallback
from lightning_merge.core.ranks import Ranks
from lightning_merge.evaluation.figures import coefficient_heatmap
from lightning_merge.modules.coefficients import CoefficientModule


class CoefficientMap(CoefficientCallback):
    """Draw a heat map [task x layer] of the coefficients when fit ends.

    Examples:
        >>> trainer = Trainer(callbacks=[CoefficientMap()], logger=False)
    """

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write figures/coefficients.png."""
        Ranks.of(trainer).once(lambda: self._draw(pl_module))

    def _draw(self, module: CoefficientModule) -> None:
        coefficient_heatmap(
            module.final_coefficients().cpu(),
            module.stacked.tasks,
            module.stacked.names,
            module.figure_file("coefficients"),
        )
