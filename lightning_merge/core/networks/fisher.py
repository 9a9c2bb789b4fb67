"""The diagonal of a network's Fisher information, from gradients of single samples."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import log_softmax
from torch.overrides import TorchFunctionMode

from lightning_merge.core.vectors.task_vectors import wide

Labels = Literal["expected", "predicted", "sampled"]
Logits = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""From parameters by name and inputs [n, ...] to logits [n, C]."""

_ENTRIES = 2**27  # gradients in memory at a time: 512 MiB in float32
_SAMPLES = 64  # most at a time: activations take memory too


def fisher_diagonal(
    logits: Logits,
    parameters: Mapping[str, Tensor],
    inputs: Tensor,
    labels: Labels = "expected",
    uniform: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the mean over samples x of E_y (d log p(y | x) / d theta)^2, entry by entry.

    The labels y come from the network, never from the data. Each sample has its own copy (a view)
    of the parameters, so that one backward pass gives separate gradients for all samples.

    Args:
        logits: The network; samples must not influence each other.
        parameters: Tensors by name.
        inputs: Inputs, [n, ...].
        labels: "expected" sums over all classes, weighted with p (C backward passes);
            "predicted" takes the most probable class, "sampled" draws one from p (one pass).
        uniform: Numbers in [0, 1) that choose the sampled labels, [n].

    Returns:
        Non-negative tensors of the parameters' shapes, in float32 or wider; zero for parameters
        that the network does not use.

    Raises:
        FloatingPointError: Logits are NaN or infinitely large.

    Examples:
        >>> weights = {"weight": torch.zeros(2, 1)}  # p = 1/2 for both classes
        >>> fisher = fisher_diagonal(lambda p, x: x @ p["weight"].T, weights, torch.tensor([[2.0]]))
        >>> fisher["weight"].round(decimals=4)  # x^2 p (1 - p)
        tensor([[1.], [1.]])
    """
    totals = {name: torch.zeros_like(wide(t)) for name, t in parameters.items()}
    entries = sum(t.numel() for t in parameters.values())
    size = min(max(_ENTRIES // max(entries, 1), 1), _SAMPLES)
    draws = torch.zeros(len(inputs)) if uniform is None else uniform
    with torch.enable_grad(), _plain_attention():
        for part, numbers in zip(inputs.split(size), draws.split(size), strict=True):
            own = [t.detach().expand(len(part), *t.shape) for t in parameters.values()]
            own = [t.requires_grad_() for t in own]
            own_by_name = dict(zip(parameters, own, strict=True))
            scores = log_softmax(wide(_each(logits, own_by_name, part)), -1)
            if bool(scores.isnan().any()):
                raise FloatingPointError("logits are NaN or infinitely large")
            for loss in _losses(scores, labels, numbers.to(scores.device)):
                gradients = torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True)
                for name, gradient in zip(totals, gradients, strict=True):
                    if gradient is not None:
                        totals[name] += wide(gradient).square().sum(0)  # gradients may share memory
    return {name: total.div_(len(inputs)) for name, total in totals.items()}


def _each(logits: Logits, own: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Return logits [n, C] of every sample with its own parameters [n, *shape]."""

    def one(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return logits(parameters, sample[None])[0]

    with _AnyLayout():
        return torch.vmap(one)(own, inputs)


class _AnyLayout(TorchFunctionMode):
    """A mode in which memory formats are ignored: `vmap` has none, and no value depends on them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function in the default layout."""
        return func(*args, **{k: v for k, v in (kwargs or {}).items() if k != "memory_format"})


def _losses(scores: Tensor, labels: Labels, uniform: Tensor) -> Iterator[Tensor]:
    """Yield sums over samples whose squared gradients, added up, are the Fisher information."""
    probabilities = scores.detach().exp()
    if labels == "expected":
        yield from (probabilities.sqrt() * scores).sum(0)
        return
    if labels == "predicted":
        chosen = probabilities.argmax(-1)
    else:
        below = probabilities.cumsum(-1) <= uniform[:, None].to(probabilities)
        chosen = below.sum(-1).clamp_(max=scores.shape[-1] - 1)
    yield scores.gather(-1, chosen[:, None]).sum()


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Disable fused attention, which does not support separate weights per sample."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
