"""Merging with learned coefficients: one matrix-vector product per tensor, and its gradient."""

import torch
from torch import Tensor

from lightning_merge.core.task_vectors import TaskVectors, flatten_tasks, is_merged, wide


class StackedTaskVectors:
    """Task vectors of K experts, stacked once per tensor, ready for many merges.

    A merge is theta_0 + c^T T for every tensor, T the stack [K, numel]. The gradient with
    respect to c is the product of T with the gradient of the merged tensor, so no graph over
    the experts is kept: beside the stacks, memory is one merged model and its gradient.
    BatchNorm's running statistics are averaged over the experts, integer tensors copied.

    Args:
        vectors: task vectors; the stacks are read from it once, in float32.
    """

    def __init__(self, vectors: TaskVectors) -> None:
        self.tasks, self.names = vectors.tasks, vectors.names
        self.base = {name: wide(vectors.base[name]) for name in self.names}
        self.stacks = {name: flatten_tasks(vectors[name]) for name in self.names}
        self.fixed = {
            name: vectors.stack(name).mean(0) if tensor.is_floating_point() else tensor.clone()
            for name, tensor in vectors.base.items()
            if not is_merged(name, tensor.dtype)
        }

    def to(self, device: torch.device | str) -> "StackedTaskVectors":
        """Move everything to a device."""
        for group in (self.base, self.stacks, self.fixed):
            group.update({name: tensor.to(device) for name, tensor in group.items()})
        return self

    def merge(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return theta_0 + sum_k c_kl tau_kl for every tensor l.

        Args:
            coefficients: [K, L], columns in the order of `names`.

        Returns:
            All tensors of the base by name, in float32 even under autocast, which would round
            weights to half precision; gradients flow into `coefficients`.
        """
        merged = dict(self.fixed)
        with torch.autocast(coefficients.device.type, enabled=False):
            for name, column in zip(self.names, coefficients.unbind(1), strict=True):
                base = self.base[name]
                flat = torch.addmv(base.reshape(-1), self.stacks[name].T, column.to(base.dtype))
                merged[name] = flat.view(base.shape)
        return merged
