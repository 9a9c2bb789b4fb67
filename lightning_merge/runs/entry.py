"""A method's entry in a run's comparison: merged at every grid point, then registered."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from lightning_merge.core.cost import Cost
from lightning_merge.core.facts import Needs, shown_to
from lightning_merge.core.progress import tracked
from lightning_merge.evaluation.candidates import Candidate
from lightning_merge.methods.base import MergeMethod, Method, Resources, Weights, brief
from lightning_merge.modules.coefficients import CoefficientModule
from lightning_merge.runs.merging import Target, ZooMerger

Merge = Callable[[CoefficientModule, MergeMethod, Resources], Weights]
"""Takes a run's module, a method and what it needs besides weights; returns merged weights."""
Draw = Callable[[CoefficientModule, Path], None]
"""Draws a figure of the last merge into a file."""


class Entry:
    """A method among the candidates of a run, in every variant of the run's module.

    Args:
        module: Module of the run, with base and experts.
        name: Name of the table row and of the files.
        points: The method at every grid point, keyed by the values that set it apart; without a
            grid, the method alone under an empty key.

    Examples:
        >>> from lightning_merge.methods import Ties
        >>> from lightning_merge.models import MiniViT
        >>> from lightning_merge.modules import AdaMerging
        >>> from lightning_merge.modules.zoo import Zoo
        >>> zoo = Zoo("base.safetensors", "{task}.safetensors", "heads.safetensors")
        >>> Entry(AdaMerging(MiniViT(), zoo), "ties", {"": Ties()}).variants  # no BatchNorm
        {'': False}
    """

    def __init__(self, module: CoefficientModule, name: str, points: Mapping[str, Method]) -> None:
        self.module, self.name, self.points = module, name, points
        self.method = next(iter(points.values()))

    @property
    def variants(self) -> Mapping[str, bool]:
        """Suffix of each variant of the result -> whether its BatchNorm is recalibrated."""
        recalibrates = self.method.requirements().recalibrates
        return self.module.variants if recalibrates else {"": False}

    def write(self, merge: Merge, draw: Draw) -> dict[str, dict[str, Cost]]:
        """Write the weights of every grid point and variant, and its figure; return their costs.

        A resumed run reuses what it has already merged from the same files.
        """
        module = self.module
        module.to(module.trainer.strategy.root_device)
        merger = ZooMerger(module.zoo, module.encoder, module.base, module.experts, module.held_out)
        going_on = module.trainer.ckpt_path is not None
        costs = {}
        for point, method in tracked([*self.points.items()], "point"):
            targets = [
                Target(
                    self._files(point, s)[0],
                    recalibrate,
                    module.held_out.describe_statistics(recalibrate),
                )
                for s, recalibrate in self.variants.items()
            ]
            took = merger.write(method, targets, partial(merge, module), going_on)
            draw(module, self._files(point)[1])
            costs[point] = dict(zip(self.variants, took, strict=True))
        return costs

    def register(self, costs: Mapping[str, Mapping[str, Cost]]) -> None:
        """Add a candidate for every variant to the comparison.

        Args:
            costs: As returned by `write`.
        """
        for suffix in self.variants:
            options = {p: self._candidate(p, suffix, costs[p][suffix]) for p in self.points}
            self.module.candidates[self.name + suffix] = (
                options[""] if "" in options else self._choice(options, suffix)
            )

    def _choice(self, options: Mapping[str, Candidate], suffix: str) -> Candidate:
        """Return the candidate that becomes the best of its options."""
        weights, figure = self._files("", suffix)
        transductive = self.method.origin().transductive
        return Candidate(
            self.name + suffix, weights, figure, transductive=transductive, options=options
        )

    def _candidate(self, point: str, suffix: str, cost: Cost) -> Candidate:
        method, origin = self.points[point], self.method.origin()
        weights, figure = self._files(point, suffix)
        return Candidate(
            self.name + suffix,
            weights,
            figure,
            cost=cost,
            note="; ".join(filter(None, [origin.note, *self._notes(method)])),
            transductive=origin.transductive,
            seen=shown_to(method),
        )

    def _files(self, point: str, suffix: str = "") -> tuple[Path, Path]:
        """Return the weights file and the figure file of a grid point."""
        name = self.name + suffix
        name += f"@{list(self.points).index(point)}" if point else ""
        return self.module.merged_file(name), self.module.figure_file(name)

    def _notes(self, method: Method) -> Iterator[str]:
        """Yield the notes that describe a table row."""
        yield brief(method)
        facts = method.requirements()
        if Needs.INPUTS in facts.needs:
            yield f"sees {len(self.module.held_out)} unlabelled held-out examples"
        if facts.told_task:
            yield "is told the task of every example"
