"""What every matrix of a network is multiplied with, whichever way the network does so."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Rows = list[Tensor]
"""Inputs of a weight [out, ...], a tensor [n, in] per group of out / len(rows) outputs."""

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_ATTENTION = inspect.signature(functional.multi_head_attention_forward)


class LinearInputs(TorchFunctionMode):
    """While active, shows the inputs of watched weights whenever they are applied.

    Works on calls of functions, not on modules, so it sees linear layers, convolutions (their
    patches), and all projections of `nn.MultiheadAttention`, which calls no module for them.
    A weight that is changed before it is applied (weight standardisation), or used in a plain
    matrix product, is not seen.

    Args:
        weights: Tensors by name, the very ones that the network will use.
        visit: Is given the name of a weight and its inputs, in the order of execution.
    """

    def __init__(self, weights: Mapping[str, Tensor], visit: Callable[[str, Rows], None]) -> None:
        super().__init__()
        self._weights = dict(weights)  # holding the tensors keeps their ids unique
        self._names = {id(weight): name for name, weight in self._weights.items()}
        self._visit = visit

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Show the inputs, then do what was called."""
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            return self._attend(*args, **kwargs)
        if func is functional.linear:
            self._show_linear(*args, **kwargs)
        elif func in _CONVOLUTIONS:
            self._show_convolution(*args, **kwargs)
        return func(*args, **kwargs)

    def _show(self, weight: Tensor | None, make_rows: Callable[[], Rows]) -> None:
        if name := self._names.get(id(weight)):
            self._visit(name, make_rows())

    def _show_linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        self._show(weight, lambda: [_rows(input)])

    def _show_convolution(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> None:
        self._show(weight, lambda: patches(input, weight, stride, padding, dilation, groups))

    def _attend(self, *args: Any, **kwargs: Any) -> Any:
        """Attention with the output projection taken out, so that its input can be seen."""
        call = _ATTENTION.bind(*args, **kwargs)
        given = call.arguments
        query, key, value = given["query"], given["key"], given["value"]
        if query is key and key is value:
            self._show(given["in_proj_weight"], lambda: [_rows(query)])
        else:
            parts = (query, key, value)
            self._show(given["in_proj_weight"], lambda: [_rows(part) for part in parts])
        for letter, part in zip("qkv", (query, key, value), strict=True):
            weight = given.get(f"{letter}_proj_weight")
            self._show(weight, lambda part=part: [_rows(part)])  # type: ignore[misc]
        weight, bias = given["out_proj_weight"], given["out_proj_bias"]
        given["out_proj_weight"] = torch.eye(weight.shape[1]).to(weight)
        given["out_proj_bias"] = None
        output, attention = functional.multi_head_attention_forward(*call.args, **call.kwargs)
        self._show(weight, lambda: [_rows(output)])
        return functional.linear(output, weight, bias), attention


def _rows(tensor: Tensor) -> Tensor:
    """Return samples and tokens in one dimension, [n, in]."""
    return tensor.reshape(-1, tensor.shape[-1])


def patches(
    images: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> Rows:
    """Return what a convolution multiplies its flattened weight with, for 1, 2 or 3 dimensions.

    Args:
        images: Input [n, C, *size], or [C, *size].
        weight: Of the convolution, [out, C / groups, *kernel].
        stride: As of `torch.nn.functional.conv2d`.
        padding: Likewise, "same" and "valid" included.
        dilation: Likewise.
        groups: Likewise.

    Returns:
        For every group, [n * positions, C / groups * kernel entries].
    """
    kernel, dims = weight.shape[2:], weight.dim() - 2
    steps, spread = _per_dimension(stride, dims), _per_dimension(dilation, dims)
    spans = [gap * (size - 1) for gap, size in zip(spread, kernel, strict=True)]
    windows = images if images.dim() > dims + 1 else images[None]
    windows = functional.pad(windows, _pads(padding, spans))
    for axis, (span, step, gap) in enumerate(zip(spans, steps, spread, strict=True)):
        windows = windows.unfold(2 + axis, span + 1, step)[..., ::gap]
    windows = windows.unflatten(1, (groups, -1)).movedim((1, 2), (0, 2 + dims))
    return [part.flatten(1 + dims).flatten(0, dims) for part in windows]


def _per_dimension(value: Any, dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _pads(padding: Any, spans: list[int]) -> list[int]:
    """Return padding as `functional.pad` takes it: last dimension first, before and after."""
    if padding == "same":
        before = [span // 2 for span in spans]
        after = [span - span // 2 for span in spans]
    else:
        before = after = _per_dimension(0 if padding == "valid" else padding, len(spans))
    return [pad for pair in zip(before[::-1], after[::-1], strict=True) for pad in pair]
