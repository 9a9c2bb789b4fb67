"""Inputs of every weight matrix of a network, however the network applies it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lightning_merge.core.networks.padding import unpadded

Rows = list[Tensor]
"""Inputs of a weight [out, ...]: one tensor [n, in] per group of out / len(rows) outputs."""

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_ATTENTION = inspect.signature(functional.multi_head_attention_forward)


class LinearInputs(TorchFunctionMode):
    """A mode that, while active, reports the inputs of watched weights whenever they are applied.

    It intercepts function calls, not modules, so it sees linear layers, convolutions (their
    patches), and all projections of `nn.MultiheadAttention`, which calls no module for them.
    It does not see a weight that is changed before it is applied (weight standardisation) or used
    in a plain matrix product.

    Args:
        weights: Tensors by name, the same objects that the network will use.
        visit: Called with the name of a weight and its inputs, in the order of execution.

    Examples:
        >>> layer = torch.nn.Linear(3, 2)
        >>> with LinearInputs({"fc": layer.weight}, lambda name, rows: print(name, rows[0].shape)):
        ...     _ = layer(torch.zeros(4, 5, 3))  # 4 images of 5 tokens
        fc torch.Size([20, 3])
    """

    def __init__(self, weights: Mapping[str, Tensor], visit: Callable[[str, Rows], None]) -> None:
        super().__init__()
        self._weights = dict(weights)  # holding the tensors keeps their ids unique
        self._names = {id(weight): name for name, weight in self._weights.items()}
        self._visit = visit

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Report the inputs, then call the function."""
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
        """Compute attention with the output projection taken out, so that its input is visible."""
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
    """Return samples and tokens in one dimension, [n, in]; padding is left out."""
    return unpadded(tensor).reshape(-1, tensor.shape[-1])


def patches(
    images: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> Rows:
    """Return the inputs of a convolution's flattened weight, for 1, 2 or 3 dimensions.

    Args:
        images: Input [n, C, *size], or [C, *size].
        weight: Weight of the convolution, [out, C / groups, *kernel].
        stride: As for `torch.nn.functional.conv2d`.
        padding: Likewise, including "same" and "valid".
        dilation: Likewise.
        groups: Likewise.

    Returns:
        For every group, [n * positions, C / groups * kernel entries].

    Examples:
        >>> images, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
        >>> (rows,) = patches(images, weight, stride=1, padding=0, dilation=1, groups=1)
        >>> outputs = (rows @ weight.flatten(1).T).view(2, 6, 6, 5).movedim(-1, 1)
        >>> torch.allclose(outputs, torch.nn.functional.conv2d(images, weight), atol=1e-4)
        True
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
    """Return padding in the order of `functional.pad`: last dimension first, before and after."""
    if padding == "same":
        before = [span // 2 for span in spans]
        after = [span - span // 2 for span in spans]
    else:
        before = after = _per_dimension(0 if padding == "valid" else padding, len(spans))
    return [pad for pair in zip(before[::-1], after[::-1], strict=True) for pad in pair]
