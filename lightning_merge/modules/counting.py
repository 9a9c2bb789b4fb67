"""What counts right predictions: counters, heads side by side, blanks for empty batches."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassStatScores

from lightning_merge.data.dataset import Batch

NOT_COUNTED = -100
"""Label of an example that is not counted."""


def counter(classes: int) -> MulticlassStatScores:
    """Return the counts of right predictions among some classes, not summed over processes.

    Examples:
        >>> counts = counter(2)
        >>> counts.update(torch.tensor([0, 1]), torch.tensor([0, 0]))
        >>> counts.compute().tolist()  # right, wrong, ..., images
        [1, 1, 1, 1, 2]
    """
    return MulticlassStatScores(
        classes, average="micro", ignore_index=NOT_COUNTED, sync_on_compute=False
    )


def filled(batch: Batch) -> Batch:
    """Return a batch with one blank input if it has none.

    Examples:
        >>> batch = Batch(torch.empty(0, 3, 8, 8), torch.empty(0), torch.empty(0))
        >>> filled(batch).inputs.shape
        torch.Size([1, 3, 8, 8])
    """
    if len(batch.inputs):
        return batch
    return batch._replace(inputs=batch.inputs.new_zeros(1, *batch.inputs.shape[1:]))


class SideBySide(nn.Module):
    """Several heads as one, whose logits are theirs side by side.

    Args:
        heads: Heads by task.
        tasks: Tasks whose heads to take, in order.

    Examples:
        >>> heads = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 3)})
        >>> SideBySide(heads, ["b", "a"])(torch.zeros(1, 4)).shape
        torch.Size([1, 5])
    """

    def __init__(self, heads: nn.ModuleDict, tasks: Iterable[str]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads[task] for task in tasks)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [n, sum of C] of features [n, dim]."""
        return torch.cat([head(features) for head in self.heads], dim=-1)
