"""LiNeS: scale a merged update by depth, deep blocks more than shallow ones."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_merge.core.checks import require_finite
from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Facts
from lightning_merge.core.vectors.scope import is_merged
from lightning_merge.core.vectors.sums import sum_over_tensor
from lightning_merge.core.vectors.task_vectors import TaskVectors, sum_tasks
from lightning_merge.core.vectors.tiles import Span
from lightning_merge.methods.base import (
    MergeMethod,
    Origin,
    Resources,
    Scope,
    Update,
    Weights,
)
from lightning_merge.methods.parts import with_transforms
from lightning_merge.methods.task_arithmetic import TaskArithmetic


def _sum() -> MergeMethod:
    return TaskArithmetic(scale=1.0)


@dataclass(frozen=True)
class LiNeS(MergeMethod):
    """Another method's update, scaled by relative depth. Needs what the other method needs.

    The update of block b of B (from 0) is multiplied by alpha + beta b / (B - 1), and that of
    tensors outside the blocks (embeddings, stems, final norms, heads) by alpha, so shallow layers,
    which are general, stay near the base.

    `block_depths` finds the blocks from numbers in names: blocks of transformers, stages of
    ResNets. A network without blocks is scaled by alpha as a whole. Transforms precede the wrapped
    method's own.

    By default alpha = ||sum_k tau_k||_1 / ||merged update||_1 / K over all tensors, which brings
    the update to the size of the average and takes one more pass of merging.

    Reference: Wang et al. 2025, "LiNeS", equations 4 and 5. There beta is chosen on held-out data.

    Args:
        method: Method that computes the update; its scale matters only if alpha is given.
        beta: Scale of the last block minus that of the first.
        alpha: Scale of the first block and of tensors outside blocks; None for the ratio above.

    Raises:
        InputError: A factor is not finite, or the method returns a network instead of weights.

    Examples:
        >>> base = {"blocks.0.w": torch.zeros(1), "blocks.1.w": torch.zeros(1)}
        >>> expert = {"blocks.0.w": torch.tensor([1.0]), "blocks.1.w": torch.tensor([2.0])}
        >>> LiNeS(alpha=0.5, beta=1.0)(base, {"cars": expert})
        {'blocks.0.w': tensor([0.5000]), 'blocks.1.w': tensor([3.])}
    """

    method: MergeMethod = field(default_factory=_sum)
    beta: float = 0.5
    alpha: float | None = None
    facts: ClassVar[Facts] = Facts(
        reference="Wang et al. 2025", arxiv="2410.17146", readings=1, on_top=True
    )

    def __post_init__(self) -> None:
        if not isinstance(self.method, MergeMethod):
            raise InputError(
                f"method={type(self.method).__name__}: LiNeS scales the update of merged weights; "
                "give a method that merges them, for example TaskArithmetic"
            )
        require_finite(beta=self.beta, alpha=self.alpha or 0.0)

    def requirements(self) -> Facts:
        """Return the facts of the wrapped method, with a reading for the norms."""
        inner = self.method.requirements()
        readings = inner.readings + inner.merges_in_plan + (self.alpha is None)
        return replace(
            self.facts,
            needs=inner.needs,
            readings=readings,
            on_top=False,
            whole=inner.whole,
            work=inner.work,
            memory=inner.memory,
        )

    def plan(self, vectors: TaskVectors, resources: Resources) -> Update:
        """Plan the wrapped method; find alpha and the depths."""
        update = self.method.plan(vectors, resources)
        alpha = self._norm_ratio(vectors, update) if self.alpha is None else self.alpha
        base = vectors.base  # blocks that no expert has changed count as well
        depths = block_depths([name for name in base if is_merged(name, base.dtype(name))])
        factors = {name: alpha + self.beta * depths.get(name, 0.0) for name in vectors.names}
        return lambda span, tile: update(span, tile).mul_(factors[span.name])

    def task_vectors(
        self,
        base: Weights,
        experts: Mapping[str, Weights],
        jobs: int = 1,
        scope: Scope = "all",
    ) -> TaskVectors:
        """Return the task vectors after these transforms and the wrapped method's own."""
        method = with_transforms(self.method, self.transforms)
        return method.task_vectors(base, experts, jobs, scope)

    def origin(self) -> Origin:
        """Return what the wrapped method learned before merging."""
        return self.method.origin()

    def _norm_ratio(self, vectors: TaskVectors, update: Update) -> float:
        """Return the default of alpha, from L1 norms; 0 if nothing is merged."""

        def norms(span: Span, tile: Tensor) -> Tensor:
            summed = sum_tasks(tile).double().abs().sum()
            return torch.stack([summed, update(span, tile).double().abs().sum()])

        def of(name: str) -> Tensor:
            if vectors.is_zero(name) or not vectors.numel(name):
                return torch.zeros(2, dtype=torch.float64)
            return sum_over_tensor(vectors, name, norms, whole=self.requirements().whole)

        total = sum(vectors.each(vectors.names, of), torch.zeros(2, dtype=torch.float64))
        summed, merged = total.tolist()
        return summed / merged / len(vectors) if merged else 0.0


def block_depths(names: Sequence[str]) -> dict[str, float]:
    """Return relative depths in [0, 1] of the tensors in blocks, from their names alone.

    A series is a set of names that differ in one number: a level of its own
    (`visual.transformer.resblocks.3.`) or the end of a level that has others below it
    (`layer2.0.`, but not `fc1.weight`). A name belongs to its first number that varies. The series
    with the most names is that of the blocks; series of the same last level are those of other
    towers (`transformer.resblocks.`). Each series is numbered separately.

    Args:
        names: Names of all tensors.

    Returns:
        b / (B - 1) for tensors of block b of B, in the order of `names`; others are left out.

    Examples:
        >>> block_depths(["stem.weight", "blocks.0.weight", "blocks.1.weight", "blocks.2.weight"])
        {'blocks.0.weight': 0.0, 'blocks.1.weight': 0.5, 'blocks.2.weight': 1.0}
    """
    numbers: dict[str, set[int]] = defaultdict(set)
    for name in names:
        for series, number in _numbers(name):
            numbers[series].add(number)
    place: dict[str, tuple[str, int]] = {}
    for name in names:
        varying = ((s, n) for s, n in _numbers(name) if len(numbers[s]) > 1)
        if first := next(varying, None):
            place[name] = first
    sizes = Counter(series for series, _ in place.values())
    largest = max(sizes, key=sizes.__getitem__, default="")
    order = {s: sorted(numbers[s]) for s in sizes if _last_level(s) == _last_level(largest)}
    return {
        name: order[series].index(number) / (len(order[series]) - 1)
        for name, (series, number) in place.items()
        if series in order
    }


def _numbers(name: str) -> Iterator[tuple[str, int]]:
    """Yield the numbers in a tensor's name that may count blocks, each with its prefix."""
    levels = name.split(".")
    for i, level in enumerate(levels[:-1]):
        digits = re.search(r"\d+$", level)
        if digits and (digits[0] == level or i < len(levels) - 2):
            yield ".".join([*levels[:i], level[: digits.start()]]), int(digits[0])


def _last_level(series: str) -> str:
    """Return `resblocks` for `visual.transformer.resblocks.`, `layer` for `visual.layer`."""
    return series.rstrip(".").rpartition(".")[2]
