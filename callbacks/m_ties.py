"""M-TIES at the end of fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lightning_merge.callbacks.merge import MergeCallback
from lightning_merge.evaluation.figures import m_loss_map
from lightning_merge.methods import MTies
from lightning_merge.methods.base import MergeMethod, Resources
from lightning_merge.modules.coefficients import CoefficientModule


class MTiesMerge(MergeCallback):
    """Merge by M-TIES on unlabelled held-out images, and draw a map of the node M-Loss.

    Args:
        method: M-TIES with its hyperparameters.
        name: Name of the table row and of the file.
        grid: Hyperparameter -> values to choose from on the held-out images.

    Examples:
        >>> [*MTiesMerge(grid={"scale": [0.5, 1.0]}).grid_methods()]
        ['scale=0.5', 'scale=1.0']
    """

    def __init__(
        self,
        method: MTies | None = None,
        name: str = "m_ties",
        grid: Mapping[str, Sequence[int | float]] | None = None,
    ) -> None:
        super().__init__(method or MTies(), name, grid)
        self._losses: Mapping[str, Tensor] | None = None

    def merge(
        self, module: CoefficientModule, method: MergeMethod, given: Resources
    ) -> Mapping[str, Tensor]:
        """Return the merged weights and remember the node losses."""
        assert isinstance(method, MTies)
        analysis = method.analyse(module.base, module.experts, given)
        self._losses = analysis.losses
        return analysis.merged

    def draw(self, module: CoefficientModule, path: Path) -> None:
        """Draw the node M-Loss of the last merge, unless the merged file already existed."""
        if self._losses is not None:
            m_loss_map(self._losses, path)
        self._losses = None
