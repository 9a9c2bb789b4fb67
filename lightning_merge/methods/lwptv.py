"""LwPTV: prune the layers, or parameters, of task vectors in which the tasks hardly differ."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_merge.core.checks import require_choice, require_in
from lightning_merge.core.facts import Facts
from lightning_merge.core.vectors.selection import kth_smallest_magnitude
from lightning_merge.core.vectors.task_vectors import TaskVectors, sum_tasks
from lightning_merge.core.vectors.tiles import Span
from lightning_merge.methods.base import Transform


@dataclass(frozen=True)
class LwPTV(Transform):
    """Layer-wise pruning of task vectors. Needs nothing but weights.

    Score of task k in layer l: s_kl = mean over entries of |tau_kl - mean_j tau_jl|. Task k
    keeps the layers whose score exceeds its floor(L * prune_ratio)-th smallest (counted from 0);
    layers that any task keeps are kept for all. A layer is one named tensor.

    PwPTV does the same for parameters, which the paper prefers for language models: the score is
    |tau_k - mean_j tau_j| of one entry, and all d entries of a task are ranked together.

    A single expert has no diversity to rank, so it keeps everything unless `prune_ratio` is 1 or
    more.

    Reference: Zhang et al. 2025, "Merging Smarter, Generalizing Better", equations 5 to 7 and
    appendices B.10 and B.16.

    Args:
        prune_ratio: Fraction eta of layers that each task prunes; 0 prunes nothing, 1 or more
            prunes everything. For language models the paper uses 0.1, 0.2, ..., 0.7.
        score: "diversity" as above, or "magnitude", the mean of |tau_kl| (ablation).
        shared: Keep for all tasks what any task keeps; if False, each task has its own mask
            (ablation).
        granularity: What is scored and pruned, "layer" (LwPTV) or "parameter" (PwPTV).

    Raises:
        InputError: `prune_ratio` is negative, or the score or granularity unknown.

    Examples:
        >>> from lightning_merge.methods import TaskArithmetic
        >>> base = {name: torch.zeros(1) for name in "xyz"}
        >>> a = {"x": torch.tensor([1.0]), "y": torch.tensor([1.0]), "z": torch.tensor([1.0])}
        >>> b = {"x": torch.tensor([1.0]), "y": torch.tensor([2.0]), "z": torch.tensor([5.0])}
        >>> TaskArithmetic(1.0, transforms=[LwPTV(0.5)])(base, {"a": a, "b": b})
        {'x': tensor([0.]), 'y': tensor([0.]), 'z': tensor([6.])}
    """

    prune_ratio: float = 0.7
    score: Literal["diversity", "magnitude"] = "diversity"
    shared: bool = True
    granularity: Literal["layer", "parameter"] = "layer"
    facts: ClassVar[Facts] = Facts(
        reference="Zhang et al. 2025, Merging Smarter, Generalizing Better", readings=1, on_top=True
    )

    def __post_init__(self) -> None:
        require_in("[0, inf)", prune_ratio=self.prune_ratio)
        require_choice(("diversity", "magnitude"), score=self.score)
        require_choice(("layer", "parameter"), granularity=self.granularity)

    def __call__(self, vectors: TaskVectors) -> TaskVectors:
        """Return the task vectors with the pruned layers or parameters zeroed."""
        if self.keeps_all(vectors):
            return vectors
        layers = self.granularity == "layer"
        return self._prune_layers(vectors) if layers else self._prune_parameters(vectors)

    def keeps_all(self, vectors: TaskVectors) -> bool:
        """Return whether nothing is pruned, which is known without a reading."""
        alone = len(vectors) == 1 and self.score == "diversity" and self.prune_ratio < 1
        return self.prune_ratio == 0 or alone or not vectors.names

    def _prune_layers(self, vectors: TaskVectors) -> TaskVectors:
        masks = self.masks(vectors)
        kept = dict(zip(vectors.names, masks.T.tolist(), strict=True))

        def prune(span: Span, tile: Tensor) -> Tensor:
            for keep, row in zip(kept[span.name], tile, strict=True):
                if not keep:
                    row.zero_()
            return tile

        return vectors.map(prune).zeroed(name for name, keep in kept.items() if not any(keep))

    def _prune_parameters(self, vectors: TaskVectors) -> TaskVectors:
        total = sum(map(vectors.numel, vectors.names))
        rank = int(total * self.prune_ratio)
        if rank >= total:
            return vectors.zeroed(vectors.names)
        deviations = vectors.map(lambda span, tile: self._deviation(tile))
        threshold = kth_smallest_magnitude(deviations, vectors.names, rank + 1).value[:, None]

        def prune(span: Span, tile: Tensor) -> Tensor:
            keep = self._deviation(tile.clone()).abs_() > threshold
            return tile.masked_fill_(~(keep.any(0) if self.shared else keep), 0.0)

        return vectors.map(prune)

    def masks(self, vectors: TaskVectors) -> Tensor:
        """Return the layers that each task keeps in the end, bool [K, L], in one reading."""
        masks = self.task_masks(self.scores(vectors))
        return self.shared_mask(masks).expand_as(masks) if self.shared else masks

    def scores(self, vectors: TaskVectors) -> Tensor:
        """Return the saliency s_kl of every task and layer, [K, L] in float64, in one reading."""

        def score(name: str) -> Tensor:
            tiles = (self._deviation(tile).abs_() for _, _, tile in vectors.tiles(name))
            parts = (tile.sum(1, dtype=torch.float64).cpu() for tile in tiles)
            total = sum(parts, torch.zeros(len(vectors), dtype=torch.float64))
            return total / max(vectors.numel(name), 1)

        return torch.stack(vectors.each(vectors.names, score), dim=1)

    def _deviation(self, tile: Tensor) -> Tensor:
        """Return the values whose magnitude is the score, [K, n], computed in place."""
        return tile.sub_(sum_tasks(tile).div_(len(tile))) if self.score == "diversity" else tile

    def task_masks(self, scores: Tensor) -> Tensor:
        """Return the layers that each task keeps on its own, bool [K, L], from scores [K, L]."""
        layers = scores.shape[1]
        rank = int(layers * self.prune_ratio)
        if self.prune_ratio == 0 or rank >= layers:
            return torch.full_like(scores, self.prune_ratio == 0, dtype=torch.bool)
        return scores > scores.sort(dim=1).values[:, rank, None]

    @staticmethod
    def shared_mask(task_masks: Tensor) -> Tensor:
        """Return the layers that at least one task keeps, bool [L], from masks [K, L]."""
        return task_masks.any(0)
