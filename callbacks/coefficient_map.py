"""The learned coefficients as a picture."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lightning_merge.core.errors import InputError
from lightning_merge.evaluation.figures import coefficient_heatmap
from lightning_merge.modules.coefficients import CoefficientModule


class CoefficientMap(Callback):
    """Draw the heat map [task x layer] of the coefficients when fit ends."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Check, before training, that there will be coefficients."""
        if stage == "fit" and not isinstance(pl_module, CoefficientModule):
            raise InputError(
                f"trainer.callbacks: {type(pl_module).__name__} learns no coefficients to draw"
            )

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write figures/coefficients.png."""
        if trainer.is_global_zero:
            coefficient_heatmap(
                pl_module.coefficients().cpu(),
                pl_module.stacked.tasks,
                pl_module.stacked.names,
                pl_module.run_folder / "figures" / "coefficients.png",
            )
