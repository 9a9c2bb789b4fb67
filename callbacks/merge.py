"""Any method as a callback: merge the run's experts when fit ends."""

import inspect
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_merge import __version__
from lightning_merge.callbacks.checked import CheckedCallback
from lightning_merge.core.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.cost import measured
from lightning_merge.core.errors import InputError
from lightning_merge.core.files import file_hash
from lightning_merge.core.ranks import Ranks
from lightning_merge.core.seeding import run_seed
from lightning_merge.evaluation.candidates import BOUNDS, Candidate
from lightning_merge.methods.base import MergeMethod, Method, brief
from lightning_merge.methods.network import NetworkMethod, as_they_are, save_network
from lightning_merge.methods.parts import hyperparameters, seeded, with_values
from lightning_merge.modules.coefficients import CoefficientModule
from lightning_merge.modules.heads import heads_hash


class Made(NamedTuple):
    """What a merge took, and what its result takes; fields as in `Candidate`."""

    seconds: float
    peak_memory: int | None = None
    extra_parameters: int = 0
    inference_cost: float = 1.0


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
        method: a merge method, or a network method, with its hyperparameters.
        name: row of the table and name of the file; the method's name without one.
        grid: hyperparameter, such as `scale`, or that of a transform or of the method within, such
            as `LwPTV.prune_ratio` -> values to try; the best on the held-out images is kept, so the
            reported number is measured on images that nothing was chosen on.

    Raises:
        InputError: the grid names something that the method does not have, a value of it is out
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
        self.variants()  # a value out of bounds shows now

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

    def variants(self) -> dict[str, Method]:
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
            for what, method in self.variants().items():
                weights, figure = self._paths(module, suffix, what)
                option = replace(candidate, weights=weights, figure=figure)
                note = "; ".join(filter(None, [origin.note, *_notes(module, method)]))
                options[what] = replace(option, note=note, **made[what][suffix]._asdict())
            module.candidates[candidate.name] = (
                replace(candidate, options=options) if self.grid else next(iter(options.values()))
            )

    def _statistics(self, module: CoefficientModule) -> Mapping[str, bool]:
        """Return the suffix of each variant of the result -> whether it is recalibrated."""
        return module.variants if getattr(self.method, "recalibrates", True) else {"": False}

    def _paths(
        self, module: CoefficientModule, suffix: str = "", what: str = ""
    ) -> tuple[Path, Path]:
        """Return the files of weights and figure of a candidate, or of a point of its grid."""
        name = self.name + suffix
        name = f"{name}@{list(self.variants()).index(what)}" if what else name
        return module.merged_file(name), module.run_folder / "figures" / f"{name}.png"

    @torch.no_grad()
    def _merge_all(self, module: CoefficientModule) -> dict[str, dict[str, Made]]:
        """Write every point of the grid in every variant, and its figure; return what each took.

        A run that goes on takes what it has merged from the same files before.
        """
        module.to(module.trainer.strategy.root_device)
        given = module.held_out.resources(self.method)._asdict()
        inputs = module.zoo.hashes(tuple(module.experts)) | module.encoder.described
        if self.method.needs != "nothing":
            inputs["images"] = module.held_out.digest
        if self.method.needs.endswith("heads"):
            inputs["heads"] = heads_hash(module.zoo.heads, tuple(module.experts))
        return {
            what: self._merge_variant(module, what, seeded(variant, run_seed()), given, inputs)
            for what, variant in self.variants().items()
        }

    def _merge_variant(
        self,
        module: CoefficientModule,
        what: str,
        method: Method,
        given: Mapping[str, Any],
        inputs: Mapping[str, str],
    ) -> dict[str, Made]:
        """Write one point of the grid, in all variants of the module."""
        about = {
            suffix: {**_described(method), **inputs, **module.describe_statistics(recalibrate)}
            for suffix, recalibrate in self._statistics(module).items()
        }
        files = {suffix: self._paths(module, suffix, what)[0] for suffix in about}
        if module.trainer.ckpt_path is not None:
            before = {suffix: _already(path, about[suffix]) for suffix, path in files.items()}
            found = {suffix: made for suffix, made in before.items() if made is not None}
            if len(found) == len(files):
                return found
        if isinstance(method, NetworkMethod):
            return self._make_networks(module, method, given, files, about)
        assert isinstance(method, MergeMethod)
        with measured(module.device) as cost:
            merged = self.merge(module, method, given)
        self.draw(module, self._paths(module, what=what)[1])
        made = Made(cost.seconds, cost.peak_memory)
        for suffix, recalibrate in self._statistics(module).items():
            weights = module.held_out.recalibrate(merged) if recalibrate else merged
            metadata = {**about[suffix], **_stored(made)}
            save_checkpoint(module.zoo.named_as_base(weights), files[suffix], metadata=metadata)
        return dict.fromkeys(files, made)

    def _make_networks(
        self,
        module: CoefficientModule,
        method: NetworkMethod,
        given: Mapping[str, Any],
        files: Mapping[str, Path],
        about: Mapping[str, Mapping[str, str]],
    ) -> dict[str, Made]:
        """Write the networks of one point of the grid, each made with its own statistics."""
        found = {}
        for suffix, recalibrate in self._statistics(module).items():
            statistics = module.held_out.recalibrate if recalibrate else as_they_are
            with measured(module.device) as cost:
                network = method(module.base, module.experts, **given, recalibrate=statistics)
            found[suffix] = Made(
                cost.seconds, cost.peak_memory, network.extra_parameters, network.inference_cost
            )
            metadata = {**about[suffix], **_stored(found[suffix])}
            save_network(network, files[suffix], metadata=metadata)
        return found

    def merge(
        self, module: CoefficientModule, method: MergeMethod, given: Mapping[str, Any]
    ) -> Mapping[str, Tensor]:
        """Return the merged weights.

        Args:
            module: the run's, with base and experts.
            method: what merges them.
            given: what the method needs beside the weights, see `HeldOut.resources`.
        """
        return method(module.base, module.experts, **given)

    def draw(self, module: CoefficientModule, path: Path) -> None:
        """Draw what the last merge saw; a subclass says what."""


def _notes(module: CoefficientModule, method: Method) -> Iterator[str]:
    """Say what a row of the table is."""
    yield brief(method)
    if method.needs != "nothing":
        yield f"sees {len(module.held_out)} unlabelled held-out images"
    if isinstance(method, NetworkMethod) and method.told_task:
        yield "is told the task of every image"


def _described(method: Method) -> dict[str, str]:
    """Return the method and its code, for the metadata of what it merges."""
    return {
        "method": type(method).__name__,
        "hyperparameters": method.described(),
        "scope": "changed",
        "version": __version__,
        "code": file_hash(inspect.getfile(type(method))),
    }


def _stored(made: Made) -> dict[str, str]:
    """Return what is known of a merge, for the metadata of its file."""
    return {key: repr(value) for key, value in made._asdict().items() if value is not None}


def _already(path: Path, metadata: Mapping[str, str]) -> Made | None:
    """Return what the merge of a file took, if it is there with this metadata."""
    if not path.exists():
        return None
    found = open_checkpoint(path).metadata
    if "seconds" not in found or not metadata.items() <= found.items():
        return None
    rank_zero_info(f"{path} is merged already")
    values = {key: json.loads(found[key]) for key in Made._fields if key in found}
    return Made(**values)
