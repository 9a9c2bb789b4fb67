"""Any method as a callback: merge the run's experts when fit ends."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_merge.callbacks.checked import CoefficientCallback
from lightning_merge.core.errors import InputError
from lightning_merge.core.ranks import Ranks
from lightning_merge.evaluation.candidates import BOUNDS
from lightning_merge.methods.base import MergeMethod, Method, Resources
from lightning_merge.methods.network import NetworkMethod
from lightning_merge.methods.parts import hyperparameters, with_values
from lightning_merge.modules.coefficients import CoefficientModule
from lightning_merge.runs.entry import Entry
from lightning_merge.runs.refusals import check_unseen


class MergeCallback(CoefficientCallback):
    """Merge at the end of fit, save the weights, and hand them to the comparison.

    Of several processes the first one merges, and the others wait. Time and memory reported are
    those of the merge by the hyperparameters that are chosen: without the search for them,
    drawing images, writing files and figures.

    Where BatchNorm is recalibrated, the weights that a merge method returns are, afterwards. A
    network method decides itself where it needs the statistics, and so is called once for every
    variant: Surgery and WEMoE have them measured for the merged network before they learn on its
    features, EMR for every task's weights on images of that task. An Ensemble's networks are the
    experts and keep their own.

    Args:
        method: A merge method, or a network method, with its hyperparameters.
        name: Row of the table and name of the file; the method's name without one.
        grid: Hyperparameter, such as `scale`, or that of a transform or of the method within, such
            as `LwPTV.prune_ratio` -> values to try; the best on the held-out images is kept, so the
            reported number is measured on images that nothing was chosen on.

    Raises:
        InputError: The grid names something that the method does not have, a value of it is out
            of bounds, or (when fit begins) the run has no experts, the method cannot take its
            architecture, or the name is taken.

    Examples:
        >>> from lightning_merge.methods import Ties
        >>> callback = MergeCallback(Ties(), grid={"scale": [0.5, 1.0], "density": [0.2]})
        >>> [*callback.grid_methods()]
        ['scale=0.5 density=0.2', 'scale=1.0 density=0.2']
    """

    def __init__(
        self,
        method: Method,
        name: str | None = None,
        grid: Mapping[str, Sequence[int | float]] | None = None,
    ) -> None:
        self.method, self.grid = method, grid or {}
        self.name = name or type(method).__name__.lower()
        known = hyperparameters(method)
        if unknown := sorted(set(self.grid) - known):
            raise InputError(
                f"grid of {self.name!r}: {type(method).__name__} has no {unknown}; "
                f"it has {sorted(known)}"
            )
        self.grid_methods()  # a value out of bounds shows now

    def check(self, trainer: Trainer, module: Any) -> None:
        """Check that there will be experts that can be merged, and that the name is free."""
        super().check(trainer, module)
        if isinstance(self.method, NetworkMethod):
            self.method.check(module.encoder.backbone)
        others: list[Any] = [c for c in trainer.callbacks if c is not self]  # type: ignore[attr-defined]
        names = [module.name, *(c.name for c in others if isinstance(c, MergeCallback))]
        taken = {name + suffix for name in names for suffix in module.variants}
        if taken & {self.name + suffix for suffix in module.variants} or self.name in BOUNDS:
            raise InputError(
                f"trainer.callbacks: the name {self.name!r} of {type(self).__name__} is taken; "
                "give every candidate its own"
            )

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Check, and that what the method has learned elsewhere knows nothing of unseen tasks.

        Raises:
            InputError: It does.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_unseen(self.name, self.method, pl_module.data.unseen)

    def grid_methods(self) -> dict[str, Method]:
        """Return the method for every point of the grid, by what distinguishes it."""
        points = itertools.product(*self.grid.values())
        return {
            " ".join(f"{k}={v}" for k, v in zip(self.grid, point, strict=True)): with_values(
                self.method, dict(zip(self.grid, point, strict=True))
            )
            for point in points
        }

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Merge and register the candidate, once per variant of the module."""
        entry = Entry(pl_module, self.name, self.grid_methods())
        entry.register(Ranks.of(trainer).once(lambda: entry.write(self.merge, self.draw)))

    def merge(
        self, module: CoefficientModule, method: MergeMethod, given: Resources
    ) -> Mapping[str, Tensor]:
        """Return the merged weights.

        Args:
            module: The run's, with base and experts.
            method: What merges them.
            given: What the method needs beside the weights, see `HeldOut.resources`.
        """
        return method.merge(module.base, module.experts, given)

    def draw(self, module: CoefficientModule, path: Path) -> None:
        """Draw what the last merge saw, if there was one; a subclass says what."""
