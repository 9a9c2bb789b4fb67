"""Merging with learned coefficients: one matrix-vector product per tensor, and its gradient."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_merge.core.vectors.task_vectors import TaskVectors, flatten_tasks, wide

Loss = Callable[[dict[str, Tensor]], Tensor]
"""From merged weights by name to a loss of one number."""


class StackedTaskVectors:
    """Task vectors of K experts, stacked once per tensor, ready for many merges.

    A merge is theta_0 + c^T T for every tensor, T the stack [K, numel]. The gradient with
    respect to c is the product of T with the gradient of the merged tensor, so no graph over
    the experts is kept. BatchNorm's running statistics are averaged over the experts; integer
    tensors and tensors that no expert has changed are copied.

    Args:
        vectors: Task vectors; the stacks are read from it once, in float32.
        device: Where merging is done.
        offload: Keep the stacks in host memory (pinned if the device is a GPU) and send each
            one to the device when its tensor is merged, and once more for its gradient.

    Examples:
        >>> experts = {"a": {"w": torch.tensor([1.0, 0.0])}, "b": {"w": torch.tensor([0.0, 1.0])}}
        >>> stacked = StackedTaskVectors(TaskVectors({"w": torch.zeros(2)}, experts))
        >>> coefficients = torch.tensor([[0.5], [0.2]], requires_grad=True)
        >>> stacked.loss(coefficients, lambda weights: weights["w"].sum()).backward()
        >>> stacked.merge(coefficients)["w"].tolist(), coefficients.grad.flatten().tolist()
        ([0.5, 0.2...], [1.0, 1.0])
    """

    def __init__(
        self, vectors: TaskVectors, device: torch.device | str = "cpu", *, offload: bool = False
    ) -> None:
        self.tasks, self.names, self.offload = vectors.tasks, vectors.names, offload
        self._pinned = offload and torch.device(device).type == "cuda"
        self.base = {name: wide(vectors.base[name]).to(device) for name in self.names}
        self.stacks = {name: self._placed(vectors[name], device) for name in self.names}
        self._ties = vectors.ties
        others = set(vectors.base).difference(self.names, self._ties)
        self.fixed = {name: self._unlearned(vectors, name).to(device) for name in sorted(others)}

    @staticmethod
    def _unlearned(vectors: TaskVectors, name: str) -> Tensor:
        """Return the value that every merge gives a tensor without task vectors."""
        stored = vectors.base[name]
        if not stored.is_floating_point():
            return stored.clone()
        return wide(stored) if vectors.stored.is_kept(name) else vectors.stored.stack(name).mean(0)

    def _placed(self, stack: Tensor, device: torch.device | str) -> Tensor:
        flat = flatten_tasks(stack)
        if not self.offload:
            return flat.to(device)
        return flat.pin_memory() if self._pinned else flat

    def to(self, device: torch.device | str) -> "StackedTaskVectors":
        """Move everything except offloaded stacks to a device."""
        for group in (self.base, self.fixed, {} if self.offload else self.stacks):
            group.update({name: tensor.to(device) for name, tensor in group.items()})
        return self

    def merge(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Return theta_0 + sum_k c_kl tau_kl for every tensor l.

        Args:
            coefficients: [K, L], columns in the order of `names`.

        Returns:
            All tensors of the base by name, in float32 even under autocast, which would round
            weights to half precision. Gradients flow into `coefficients`; `loss` computes them
            with less memory.
        """
        merged = {name: tensor.clone() for name, tensor in self.fixed.items()}
        with torch.autocast(coefficients.device.type, enabled=False):
            for name, column in zip(self.names, coefficients.unbind(1), strict=True):
                base = self.base[name]  # no name for the stack: one is on the device at a time
                flat = torch.addmv(base.reshape(-1), self._stack(name).T, column.to(base.dtype))
                merged[name] = flat.view(base.shape)
        return merged | {name: merged[first] for name, first in self._ties.items()}

    def loss(self, coefficients: Tensor, of: Loss, *, scale: float = 1.0) -> Tensor:
        """Return the loss of the merged network, differentiable in the coefficients.

        The gradient is computed at once: when backward reaches a merged tensor, its gradient is
        multiplied with the stack and discarded. Besides the stacks and the activations of `of`,
        memory holds the base, one merged network and the gradient of one tensor.

        Args:
            coefficients: [K, L], columns in the order of `names`.
            of: Computes the loss from merged weights; called once.
            scale: Factor of the loss during backward, for losses whose gradients would underflow
                in half precision.

        Returns:
            The loss. Its gradient is that of `of(merge(coefficients))`; there is no second
            derivative.
        """
        weights = self.merge(coefficients.detach())
        gradient = torch.zeros_like(coefficients)
        for name, column in zip(self.names, gradient.unbind(1), strict=True):
            leaf = weights[name].requires_grad_()
            leaf.register_post_accumulate_grad_hook(partial(self._collect, name, column))
        with torch.enable_grad():
            loss = of(weights)
        with torch.autocast(coefficients.device.type, enabled=False):
            (loss * scale).backward()
        return _WithGradient.apply(coefficients, loss.detach(), gradient.div_(scale))

    @torch.no_grad()
    def _collect(self, name: str, column: Tensor, leaf: Tensor) -> None:
        """Turn the gradient of a merged tensor into that of its column of coefficients."""
        assert leaf.grad is not None
        column.copy_(torch.mv(self._stack(name), leaf.grad.reshape(-1)))
        leaf.grad = None

    def _stack(self, name: str) -> Tensor:
        """Return the stack [K, numel] of a tensor, on the device of its base."""
        return self.stacks[name].to(self.base[name].device, non_blocking=True)

    def share(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Point a network's parameters at the equal tensors of the base, to hold them once."""
        for name, parameter in parameters.items():
            if name in self.base:
                parameter.data = self.base[name].view_as(parameter)


class _WithGradient(torch.autograd.Function):
    """A number with a precomputed gradient."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return outputs[0] * gradient, None, None
