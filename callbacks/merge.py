"""Any method as a callback: merge the run's experts when fit ends."""

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_merge.core.checkpoint import save_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.core.ranks import Ranks
from lightning_merge.evaluation.candidates import BOUNDS, Candidate
from lightning_merge.methods.base import MergeMethod
from lightning_merge.modules.coefficients import CoefficientModule


class MergeCallback(Callback):
    """Merge at the end of fit, save the weights, and hand them to the comparison.

    Of several processes the first one merges, and the others wait. The time reported is that of
    the merge by the hyperparameters that are chosen: without the search for them, drawing
    images, writing files and figures.

    Args:
        method: a merge method with its hyperparameters.
        name: row of the table and name of the file; the method's name without one.
        grid: hyperparameter -> values to try; the best on the held-out images is kept, so the
            reported number is measured on images that nothing was chosen on.

    Raises:
        InputError: the grid names something that the method does not have, a value of it is out
            of bounds, or (when fit begins) the run has no experts or the name is taken.
    """

    def __init__(
        self,
        method: MergeMethod,
        name: str | None = None,
        grid: dict[str, list[float]] | None = None,
    ) -> None:
        self.method, self.grid = method, grid or {}
        self.name = name or type(method).__name__.lower()
        known = {field.name for field in fields(method)}  # type: ignore[arg-type]
        if unknown := sorted(set(self.grid) - known):
            raise InputError(
                f"grid of {self.name!r}: {type(method).__name__} has no {unknown}; "
                f"it has {sorted(known)}"
            )
        self.variants()  # a value out of bounds shows now

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Check, before training, that there will be experts to merge and a free name."""
        if stage == "fit":
            with Ranks.of(trainer).agreed():
                self._check(trainer, pl_module)

    def _check(self, trainer: Trainer, module: Any) -> None:
        if not isinstance(module, CoefficientModule):
            raise InputError(
                f"trainer.callbacks: {type(module).__name__} has no experts to merge; use "
                "merge callbacks with a module that learns coefficients, such as StatsMerging"
            )
        others: list[Any] = [c for c in trainer.callbacks if c is not self]  # type: ignore[attr-defined]
        names = [c.name for c in others if isinstance(c, MergeCallback)]
        if self.name in (*names, module.name, *BOUNDS):
            raise InputError(
                f"trainer.callbacks: the name {self.name!r} of {type(self).__name__} is taken; "
                "give every candidate its own"
            )

    def variants(self) -> dict[str, MergeMethod]:
        """Return the method for every point of the grid, by what distinguishes it."""
        points = itertools.product(*self.grid.values())
        return {
            " ".join(f"{k}={v}" for k, v in zip(self.grid, point, strict=True)): replace(
                self.method,  # type: ignore[type-var]
                **dict(zip(self.grid, point, strict=True)),
            )
            for point in points
        }

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Merge and register the candidate."""
        module: CoefficientModule = pl_module
        seconds = Ranks.of(trainer).once(lambda: self._merge_all(module))
        options = {
            what: Candidate(self.name, self._path(module, what), spent)
            for what, spent in seconds.items()
        }
        module.candidates[self.name] = (
            Candidate(self.name, self._path(module), options=options)
            if self.grid
            else next(iter(options.values()))
        )

    def _path(self, module: CoefficientModule, what: str = "") -> Path:
        """Return the file of the candidate, or of one of its variants."""
        number = f"@{list(self.variants()).index(what)}" if what else ""
        return module.run_folder / "merged" / f"{self.name}{number}.safetensors"

    @torch.no_grad()
    def _merge_all(self, module: CoefficientModule) -> dict[str, float]:
        """Write every variant, and the figure; return the seconds that each merge took."""
        seconds = {}
        module.to(module.trainer.strategy.root_device)
        given = resources(module, self.method)
        hashes = module.zoo.hashes(module.data.tasks)
        for what, variant in self.variants().items():
            method = _seeded(variant)
            started = time.perf_counter()
            merged = self.merge(module, method, given)
            seconds[what] = time.perf_counter() - started
            metadata = {
                "method": type(method).__name__,
                "hyperparameters": method.described(),
                **hashes,
            }
            save_checkpoint(merged, self._path(module, what), metadata=metadata)
        self.draw(module, module.run_folder / "figures" / f"{self.name}.png")
        return seconds

    def merge(
        self, module: CoefficientModule, method: MergeMethod, given: Mapping[str, Any]
    ) -> Mapping[str, Tensor]:
        """Return the merged weights.

        Args:
            module: the run's, with base and experts.
            method: what merges them.
            given: what the method needs beside the weights, see `resources`.
        """
        return method(module.base, module.experts, **given)

    def draw(self, module: CoefficientModule, path: Path) -> None:
        """Draw what the method saw, once all merges are done; a subclass says what."""


def resources(module: CoefficientModule, method: MergeMethod) -> dict[str, Any]:
    """Return the network and unlabelled held-out images for a method that needs them."""
    if method.needs == "nothing":
        return {}
    drawn = module.data.unlabelled(seed=run_seed())
    images = module.preprocess.normalize(drawn.to(module.device))
    return {"model": module.encoder.backbone, "batches": images}


def _seeded(method: Any) -> Any:
    """Add the run's seed to a method's and its transforms' own, so that runs of others differ."""
    changes: dict[str, Any] = {}
    if hasattr(method, "seed"):
        changes["seed"] = method.seed + run_seed()
    if transforms := getattr(method, "transforms", ()):
        changes["transforms"] = tuple(_seeded(transform) for transform in transforms)
    return replace(method, **changes)


def run_seed() -> int:
    """Return the seed of the run, as lightning's seed_everything leaves it."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def prepend(method: MergeMethod, transform: Any) -> MergeMethod:
    """Return the method with one more transform in front of its own."""
    transforms: Sequence[Any] = (transform, *method.transforms)
    return replace(method, transforms=transforms)  # type: ignore[type-var]
