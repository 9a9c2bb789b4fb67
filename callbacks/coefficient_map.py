"""The learned coefficients as a picture."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lightning_merge.core.errors import InputError
from lightning_merge.core.ranks import Ranks
from lightning_merge.evaluation.figures import coefficient_heatmap
from lightning_merge.modules.coefficients import CoefficientModule


class CoefficientMap(Callback):
    """Draw the heat map [task x layer] of the coefficients when fit ends."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Check, before training, that there will be coefficients."""
        with Ranks.of(trainer).agreed():
            if stage == "fit" and not isinstance(pl_module, CoefficientModule):
                raise InputError(
                    f"trainer.callbacks: {type(pl_module).__name__} learns no coefficients to draw"
                )

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write figures/coefficients.png."""
        Ranks.of(trainer).once(lambda: self._draw(pl_module))

    def _draw(self, module: CoefficientModule) -> None:
        coefficient_heatmap(
            module.coefficients().cpu(),
            module.stacked.tasks,
            module.stacked.names,
            module.run_folder / "figures" / "coefficients.png",
        )
