"""The learned coefficients as a picture."""

from typing import Any

import torch
from lightning.pytorch import Trainer

from lightning_merge.callbacks.checked import CheckedCallback
from lightning_merge.core.errors import InputError
from lightning_merge.core.ranks import Ranks
from lightning_merge.evaluation.figures import coefficient_heatmap
from lightning_merge.modules.coefficients import CoefficientModule


class CoefficientMap(CheckedCallback):
    """Draw the heat map [task x layer] of the coefficients when fit ends."""

    def check(self, trainer: Trainer, module: Any) -> None:
        """Check that there will be coefficients."""
        if not isinstance(module, CoefficientModule):
            raise InputError(
                f"trainer.callbacks: {type(module).__name__} learns no coefficients to draw"
            )

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write figures/coefficients.png."""
        Ranks.of(trainer).once(lambda: self._draw(pl_module))

    def _draw(self, module: CoefficientModule) -> None:
        coefficient_heatmap(
            module.final_coefficients().cpu(),
            module.stacked.tasks,
            module.stacked.names,
            module.run_folder / "figures" / "coefficients.png",
        )
