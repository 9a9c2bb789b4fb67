"""Any method as a callback: merge the run's experts when fit ends."""

import hashlib
import inspect
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_merge import __version__
from lightning_merge.callbacks.checked import CheckedCallback
from lightning_merge.core.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.core.files import file_hash
from lightning_merge.core.ranks import Ranks
from lightning_merge.core.seeding import run_seed
from lightning_merge.evaluation.candidates import BOUNDS, Candidate
from lightning_merge.methods.base import MergeMethod, seeded
from lightning_merge.modules.coefficients import CoefficientModule


class MergeCallback(CheckedCallback):
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

    def check(self, trainer: Trainer, module: Any) -> None:
        """Check that there will be experts to merge, and that the name is free."""
        if not isinstance(module, CoefficientModule):
            raise InputError(
                f"trainer.callbacks: {type(module).__name__} has no experts to merge; use "
                "merge callbacks with a module that learns coefficients, such as StatsMerging"
            )
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
            InputError: it does.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if known := sorted(set(self.method.origin().tasks) & set(pl_module.data.unseen)):
            raise InputError(
                f"data.unseen={list(pl_module.data.unseen)}: {self.name!r} merges by what was "
                f"learned on {', '.join(known)}; take a file that was not, or leave it out"
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
        """Merge and register the candidate, once per variant of the module."""
        module: CoefficientModule = pl_module
        seconds = Ranks.of(trainer).once(lambda: self._merge_all(module))
        origin = self.method.origin()
        for suffix in module.variants:
            candidate = Candidate(
                self.name + suffix,
                *self._paths(module, suffix),
                note=origin.note,
                transductive=origin.transductive,
            )
            options = {}
            for what, spent in seconds.items():
                weights, figure = self._paths(module, suffix, what)
                options[what] = replace(candidate, weights=weights, figure=figure, seconds=spent)
            module.candidates[candidate.name] = (
                replace(candidate, options=options) if self.grid else next(iter(options.values()))
            )

    def _paths(
        self, module: CoefficientModule, suffix: str = "", what: str = ""
    ) -> tuple[Path, Path]:
        """Return the files of weights and figure of a candidate, or of a point of its grid."""
        name = self.name + suffix
        name = f"{name}@{list(self.variants()).index(what)}" if what else name
        return module.merged_file(name), module.run_folder / "figures" / f"{name}.png"

    @torch.no_grad()
    def _merge_all(self, module: CoefficientModule) -> dict[str, float]:
        """Write every variant and its figure; return the seconds that each merge took.

        A run that goes on takes what it has merged from the same files before.
        """
        module.to(module.trainer.strategy.root_device)
        given = resources(module, self.method)
        inputs = {**module.zoo.hashes(tuple(module.experts)), **_hash_of_images(given)}
        return {
            what: self._merge_variant(module, what, seeded(variant, run_seed()), given, inputs)
            for what, variant in self.variants().items()
        }

    def _merge_variant(
        self,
        module: CoefficientModule,
        what: str,
        method: MergeMethod,
        given: Mapping[str, Any],
        inputs: Mapping[str, str],
    ) -> float:
        """Write one point of the grid, in all variants of the module; return its seconds."""
        files = {
            self._paths(module, suffix, what)[0]: {
                **_described(method), **inputs, **module.describe_statistics(recalibrate)
            }
            for suffix, recalibrate in module.variants.items()
        }  # fmt: skip
        if module.trainer.ckpt_path is not None:
            spent = [_already(path, metadata) for path, metadata in files.items()]
            if spent[0] is not None and None not in spent:
                return spent[0]
        started = time.perf_counter()
        merged = self.merge(module, method, given)
        seconds = time.perf_counter() - started
        self.draw(module, self._paths(module, what=what)[1])
        for recalibrate, (path, metadata) in zip(
            module.variants.values(), files.items(), strict=True
        ):
            weights = module.recalibrate(merged) if recalibrate else merged
            save_checkpoint(weights, path, metadata={**metadata, "seconds": repr(seconds)})
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
        """Draw what the last merge saw; a subclass says what."""


def resources(module: CoefficientModule, method: MergeMethod) -> dict[str, Any]:
    """Return network, heads and unlabelled held-out images for a method that needs them."""
    if method.needs == "nothing":
        return {}
    drawn = module.data.unlabelled_by_task(seed=run_seed())
    normalize = module.preprocess.normalize
    return {
        "model": module.encoder.backbone,
        "batches": {task: normalize(part.to(module.device)) for task, part in drawn.items()},
        "heads": dict(module.heads.items()),
        "project": module.encoder.project,
    }


def _described(method: MergeMethod) -> dict[str, str]:
    """Return the method and its code, for the metadata of what it merges."""
    return {
        "method": type(method).__name__,
        "hyperparameters": method.described(),
        "version": __version__,
        "code": file_hash(inspect.getfile(type(method))),
    }


def _hash_of_images(given: Mapping[str, Any]) -> dict[str, str]:
    if not given:
        return {}
    images = torch.cat([*given["batches"].values()])
    return {"images": hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()}


def _already(path: Path, metadata: Mapping[str, str]) -> float | None:
    """Return the seconds that the merge of a file took, if it is there with this metadata."""
    if not path.exists():
        return None
    found = open_checkpoint(path).metadata
    if "seconds" not in found or not metadata.items() <= found.items():
        return None
    rank_zero_info(f"{path} is merged already")
    return float(found["seconds"])


def prepend(method: MergeMethod, transform: Any) -> MergeMethod:
    """Return the method with one more transform in front of its own."""
    transforms: Sequence[Any] = (transform, *method.transforms)
    return replace(method, transforms=transforms)  # type: ignore[type-var]
