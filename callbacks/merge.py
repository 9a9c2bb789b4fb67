"""Any method as a callback: merge the run's experts when fit ends."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_merge.callbacks.checked import CheckedCallback
from lightning_merge.core.cost import Cost
from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Needs
from lightning_merge.core.ranks import Ranks
from lightning_merge.evaluation.candidates import BOUNDS, Candidate
from lightning_merge.methods.base import MergeMethod, Method, Resources, brief
from lightning_merge.methods.network import NetworkMethod
from lightning_merge.methods.parts import hyperparameters, with_values
from lightning_merge.modules.coefficients import CoefficientModule
from lightning_merge.runs.merging import Target, ZooMerger


class MergeCallback(CheckedCallback):
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
        if not isinstance(module, CoefficientModule):
            raise InputError(
                f"trainer.callbacks: {type(module).__name__} has no experts to merge; use "
                "merge callbacks with a module that learns coefficients, such as StatsMerging"
            )
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
        if stage != "fit":
            return
        if known := sorted(set(self.method.origin().tasks) & set(pl_module.data.unseen)):
            raise InputError(
                f"data.unseen={list(pl_module.data.unseen)}: {self.name!r} merges by what was "
                f"learned on {', '.join(known)}; take a file that was not, or leave it out"
            )

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
        module: CoefficientModule = pl_module
        made = Ranks.of(trainer).once(lambda: self._merge_all(module))
        origin = self.method.origin()
        for suffix in self._statistics(module):
            candidate = Candidate(
                self.name + suffix,
                *self._paths(module, suffix),
                transductive=origin.transductive,
            )
            options = {}
            for what, method in self.grid_methods().items():
                weights, figure = self._paths(module, suffix, what)
                option = replace(candidate, weights=weights, figure=figure)
                note = "; ".join(filter(None, [origin.note, *_notes(module, method)]))
                options[what] = replace(option, note=note, cost=made[what][suffix])
            module.candidates[candidate.name] = (
                replace(candidate, options=options) if self.grid else next(iter(options.values()))
            )

    def _statistics(self, module: CoefficientModule) -> Mapping[str, bool]:
        """Return the suffix of each variant of the result -> whether it is recalibrated."""
        return module.variants if self.method.requirements().recalibrates else {"": False}

    def _paths(
        self, module: CoefficientModule, suffix: str = "", what: str = ""
    ) -> tuple[Path, Path]:
        """Return the files of weights and figure of a candidate, or of a point of its grid."""
        name = self.name + suffix
        name = f"{name}@{list(self.grid_methods()).index(what)}" if what else name
        return module.merged_file(name), module.run_folder / "figures" / f"{name}.png"

    def _merge_all(self, module: CoefficientModule) -> dict[str, dict[str, Cost]]:
        """Write every point of the grid in every variant, and its figure; return what each took.

        A run that goes on takes what it has merged from the same files before.
        """
        module.to(module.trainer.strategy.root_device)
        zoo, encoder, held_out = module.zoo, module.encoder, module.held_out
        merger = ZooMerger(zoo, encoder, module.base, module.experts, held_out)
        made = {}
        for what, method in self.grid_methods().items():
            targets = {
                suffix: Target(
                    self._paths(module, suffix, what)[0],
                    recalibrate,
                    module.describe_statistics(recalibrate),
                )
                for suffix, recalibrate in self._statistics(module).items()
            }
            going_on = module.trainer.ckpt_path is not None
            merge = partial(self.merge, module)
            found = merger.write(method, [*targets.values()], merge, going_on)
            self.draw(module, self._paths(module, what=what)[1])
            made[what] = dict(zip(targets, found, strict=True))
        return made

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


def _notes(module: CoefficientModule, method: Method) -> Iterator[str]:
    """Say what a row of the table is."""
    yield brief(method)
    facts = method.requirements()
    if Needs.IMAGES in facts.needs:
        yield f"sees {len(module.held_out)} unlabelled held-out images"
    if facts.told_task:
        yield "is told the task of every image"
