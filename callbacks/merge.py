"""Any method as a callback: merge the run's experts when fit ends."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_merge.callbacks.checked import CoefficientCallback
from lightning_merge.core.cost import Cost, charge, measured
from lightning_merge.core.errors import InputError
from lightning_merge.core.progress import stage
from lightning_merge.core.ranks import Ranks
from lightning_merge.evaluation.candidates import BOUNDS
from lightning_merge.methods.base import MergeMethod, Method, Resources
from lightning_merge.methods.linear import Directions, Linear, is_separable
from lightning_merge.methods.network import NetworkMethod
from lightning_merge.methods.parts import hyperparameters, with_values
from lightning_merge.modules.coefficients import CoefficientModule
from lightning_merge.runs.entry import Entry
from lightning_merge.runs.refusals import check_unseen


class MergeCallback(CoefficientCallback):
    """Merge at the end of fit, save the weights, and add them to the comparison.

    With several processes, the first one merges and the others wait. The reported time and memory
    are those of the merge with the chosen hyperparameters. They exclude the search, sampling
    images, and writing files and figures. If `scale` is the last of a grid, and the method linear
    in it, the update is kept for all scales, and counts in the memory.

    BatchNorm recalibration follows a merge method and applies to the weights it returns. A network
    method decides for itself where it needs the statistics, so it is called once per variant:
    Surgery and WEMoE measure them on the merged network before learning from its features, EMR
    measures them for each task's weights on images of that task. The networks of an Ensemble are
    the experts and keep their own statistics.

    Args:
        method: A merge method or a network method, with its hyperparameters.
        name: Name of the table row and of the file; by default the method's name.
        grid: Hyperparameter -> values to try: one of the method, such as `scale`, or of a
            transform or wrapped method, such as `LwPTV.prune_ratio`. The best value on the
            held-out images is kept, so test images play no part in the choice.

    Raises:
        InputError: The grid names an unknown hyperparameter or has a value out of bounds; or, when
            fit begins, the run has no experts, the method does not support the architecture, or
            the name is taken.

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
        self._formed: tuple[Method, Directions, Cost] | None = None
        self.grid_methods()  # fail now if a value is out of bounds

    def check(self, trainer: Trainer, module: Any) -> None:
        """Check that the run has experts the method can merge, and that the name is free."""
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
        """Check the run, and that the method was not trained on an unseen task.

        Raises:
            InputError: It was.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_unseen(self.name, self.method, pl_module.data.unseen)

    def grid_methods(self) -> dict[str, Method]:
        """Return the method at every grid point, keyed by the values that set it apart."""
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
        with stage(self.stage) as say:
            entry.register(Ranks.of(trainer).once(lambda: entry.write(self.merge, self.draw)))
            self._formed = None
            say(f"{len(entry.points)} grid points" if self.grid else "")

    @property
    def stage(self) -> str:
        """Name of the stage that merges."""
        return f"merging {self.name}"

    def merge(
        self, module: CoefficientModule, method: MergeMethod, given: Resources
    ) -> Mapping[str, Tensor]:
        """Return the merged weights; a grid over the scale forms their update once.

        Args:
            module: Module of the run, with base and experts.
            method: Merge method to apply.
            given: What the method needs besides the weights, see `HeldOut.resources`.
        """
        fastest = [*self.grid][-1:]  # of other orders, every point would have its own update
        if not (fastest == ["scale"] and is_separable(method)):
            return method.merge(module.base, module.experts, given)
        assert isinstance(method, Linear)
        unscaled = with_values(method, {"scale": 0.0})
        if self._formed is None or self._formed[0] != unscaled:
            self._formed = None  # before the next ones take their memory
            with measured(module.device) as cost:
                directions = Directions(method, module.base, module.experts, given)
            self._formed = unscaled, directions, cost
        else:
            charge(self._formed[2])
        return self._formed[1].at(method.scale)

    def draw(self, module: CoefficientModule, path: Path) -> None:
        """Draw a figure of the last merge, if there was one; for subclasses to override."""
