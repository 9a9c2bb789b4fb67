"""M-DARE: DARE in which nodes keep less the more averaging their weights fails."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_merge.core.checks import require_finite
from lightning_merge.core.networks.m_loss import Reduce
from lightning_merge.core.vectors.drop import drop_at_random
from lightning_merge.core.vectors.task_vectors import TaskVectors, sum_tasks
from lightning_merge.core.vectors.tiles import Span, row_size, whole_rows
from lightning_merge.methods.base import Update
from lightning_merge.methods.m_ties import LayerInputs, NodeOrder, RankedByMLoss


@dataclass(frozen=True)
class MDare(RankedByMLoss):
    """DARE with a keep probability per node, ranked by M-Loss. Needs unlabelled batches.

    In every layer that `MTies` ranks, an entry of row j of a task vector is kept with probability
    p_j = keep - spread * rank_j, with rank_j as in `MTies`, and divided by p_j; in all other
    tensors p is `keep`. The update is scale * sum. With spread 0 this is task arithmetic after
    `Dare(drop=1 - keep)`, with the same random numbers. After transforms, the M-Loss is that of the
    transformed experts.

    Reference: Wang et al. 2025, "M-Loss", Figure 1, which names DARE as a backend of the row
    ratios but gives no details.

    Args:
        keep: Keep probability of the node of lowest loss and of all other tensors, in [0, 1].
        spread: Keep probability of the lowest-loss node minus the highest's, in [0, keep].
        scale: Factor of the sum.
        layer_inputs: Activations that a layer sees, of the "merged" prefix or of the "base".
        reduce: Average of |D| ("abs") or of D^2 ("square") over samples and tokens.
        layers: Layers to rank: positions among the layers found, or names of modules; all layers
            found by default.
        node_order: "loss", or a control: "random" ranks, "uniform" probability
            keep - spread / 2, "reversed" ranks.
        activation: Gelu, gelu_tanh, hardswish, quick_gelu, relu, relu6, silu or tanh in place of
            the model's own; required for named layers whose activation is not a module.
        seed: Seed of the dropped entries and of the random ranks.

    Raises:
        InputError: A value is out of bounds.

    Examples:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
        >>> experts = {"a": {"0.weight": torch.tensor([[1.0], [4.0]])}}
        >>> experts["b"] = {"0.weight": torch.tensor([[1.0], [-2.0]])}
        >>> method = MDare(keep=1.0, spread=1.0, scale=1.0)  # row 0 keeps everything, row 1 nothing
        >>> method({"0.weight": torch.zeros(2, 1)}, experts, model=model, batches=torch.ones(1, 1))
        {'0.weight': tensor([[2.],
                [0.]])}
    """

    keep: float = 0.8
    spread: float = 0.1
    scale: float = 0.3
    layer_inputs: LayerInputs = "merged"
    reduce: Reduce = "abs"
    layers: Sequence[int | str] | None = None
    node_order: NodeOrder = "loss"
    activation: str | None = None
    seed: int = 0
    name: ClassVar[str] = "M-DARE"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(scale=self.scale)

    def updating(self, vectors: TaskVectors, keep_ratios: dict[str, Tensor]) -> Update:
        """Return the function that drops by row in ranked layers, evenly elsewhere, and sums."""

        def update(span: Span, tile: Tensor) -> Tensor:
            keep = self._probabilities(span, vectors, keep_ratios)
            drop_at_random(span, tile, vectors, 1 - keep, self.seed)
            return sum_tasks(tile.div_(keep.clamp(min=1e-9).to(tile))).mul_(self.scale)

        return update

    def _probabilities(
        self, span: Span, vectors: TaskVectors, keep_ratios: dict[str, Tensor]
    ) -> Tensor:
        """Return the probability of keeping each entry of a span, [n] or one number, in float64."""
        if span.name not in keep_ratios:
            return torch.tensor(self.keep, dtype=torch.float64)
        shape = vectors.base.shape(span.name)
        rows = keep_ratios[span.name][whole_rows(span, shape, len(vectors))]
        return rows.repeat_interleave(row_size(shape))
