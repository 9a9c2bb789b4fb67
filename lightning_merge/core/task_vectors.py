"""Task vectors of several experts, stacked per tensor and computed when asked for."""

from collections.abc import Callable, Mapping
from copy import copy

import torch
from torch import Tensor

from lightning_merge.core.checkpoint import as_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.core.names import is_statistic

StackMap = Callable[[str, Tensor], Tensor]
"""Maps a tensor's name and its stack [K, *shape] to another stack of the same shape."""


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the precision of all sums: float32, or float64 where it is stored so."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def per_task(values: Tensor, stacked: Tensor) -> Tensor:
    """Reshape one value per task, [K], so that it broadcasts over a stack [K, *shape]."""
    return values.to(stacked.device).view(-1, *[1] * (stacked.dim() - 1))


def flatten_tasks(stacked: Tensor) -> Tensor:
    """View a stack [K, *shape] as [K, numel], scalars and empty tensors included."""
    return stacked.reshape(len(stacked), stacked[0].numel())


def is_merged(name: str, tensor: Tensor | torch.dtype) -> bool:
    """Whether a tensor has a task vector: a floating-point one, no BatchNorm statistic.

    Args:
        name: The tensor's name.
        tensor: The tensor, or its type where reading it can be avoided.
    """
    dtype = tensor if isinstance(tensor, torch.dtype) else tensor.dtype
    return dtype.is_floating_point and not is_statistic(name)


class TaskVectors:
    """Task vectors tau_k = theta_k - theta_0 of K experts, one stacked tensor at a time.

    `vectors[name]` reads the named tensor of the base and of every expert and returns the
    stack [K, *shape] in float32 (float64 for tensors stored so). Nothing is cached, so the
    memory in use is one stack, whatever the size of the mappings.

    Args:
        base: Pretrained weights by name.
        experts: Task to fine-tuned weights by name; `check_experts` has accepted them.
    """

    def __init__(
        self, base: Mapping[str, Tensor], experts: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        self.base, self.experts = as_checkpoint(base), experts
        self.tasks = tuple(experts)
        self.names = tuple(name for name in base if is_merged(name, self.base.dtype(name)))
        self._maps: tuple[StackMap, ...] = ()

    def __len__(self) -> int:
        """Number of experts, K."""
        return len(self.tasks)

    def __getitem__(self, name: str) -> Tensor:
        """The task vectors of the named tensor, [K, *shape], after every map.

        Raises:
            InputError: The base's or an expert's tensor has a NaN or infinite value.
        """
        stacked = self.stack(name).sub_(wide(self.base[name]))
        self._check_finite(name, stacked)
        for function in self._maps:
            stacked = function(name, stacked)
        return stacked

    def stack(self, name: str) -> Tensor:
        """The experts' stored tensors of that name, statistics included, [K, *shape]."""
        base = self.base[name]
        dtype = torch.promote_types(base.dtype, torch.float32)
        stacked = torch.empty((len(self), *base.shape), dtype=dtype, device=base.device)
        for row, expert in zip(stacked, self.experts.values(), strict=True):
            row.copy_(expert[name])
        return stacked

    def weights(self, name: str) -> Tensor:
        """The weights theta_0 + tau_k that the mapped task vectors stand for, [K, *shape]."""
        return self[name] + wide(self.base[name])

    def map(self, function: StackMap) -> "TaskVectors":
        """A lazy view in which every stack has also passed through `function(name, stack)`."""
        view = copy(self)
        view._maps = (*self._maps, function)
        return view

    def _check_finite(self, name: str, stacked: Tensor) -> None:
        if torch.isfinite(stacked.sum()):
            return
        if not torch.isfinite(self.base[name]).all():
            raise InputError(f"base: {name} has NaN or infinite values; save the checkpoint again")
        broken = [t for t, row in zip(self.tasks, stacked, strict=True) if not row.isfinite().all()]
        if broken:
            raise InputError(
                f"experts: {name} of {', '.join(broken)} has NaN or infinite values; "
                "leave such an expert out or save its checkpoint again"
            )
