"""Linear layers inside a network: which of them feed an activation, and what goes into them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_merge.core.errors import InputError

Visitor = Callable[[Tensor], None]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode without gradients; restore each module's mode after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def activated_linears(model: nn.Module, inputs: Tensor) -> dict[str, nn.Module]:
    """Find every `nn.Linear` whose output goes straight into an activation module.

    The network runs once. An activation is a module without parameters or children that
    works entry by entry and is not linear, so neither Identity nor Dropout nor Softmax.

    Args:
        model: Any network; it comes back unchanged.
        inputs: A small batch that the network accepts, [n, ...].

    Returns:
        Name of the linear layer to its activation, in the order of execution.
    """
    outputs: dict[int, tuple[str, Tensor]] = {}  # holding the tensors keeps their ids unique
    found: dict[str, nn.Module] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            outputs[id(output)] = (name, output)

        return hook

    def look_up(module: nn.Module, args: tuple[Any, ...]) -> None:
        producer = outputs.get(id(args[0])) if args else None
        if producer and producer[0] not in found and is_activation(module):
            found[producer[0]] = module

    with evaluating(model), ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_hook(remember(name)).remove)
            elif not [*module.children(), *module.parameters()]:
                stack.callback(module.register_forward_pre_hook(look_up).remove)
        model(inputs)
    return found


def is_activation(module: nn.Module) -> bool:
    """Whether a module without parameters works entry by entry and is not affine."""
    probe = torch.linspace(-3.0, 3.0, 13)
    try:
        whole, start = module.forward(probe.clone()), module.forward(probe[:6].clone())
        curvature = whole.diff(n=2).abs().max()  # zero for affine functions on an even grid
        return torch.allclose(whole[:6], start) and bool(curvature > 1e-3)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False


def run_visiting(
    model: nn.Module,
    state: Mapping[str, Tensor],
    inputs: Tensor,
    visitors: Mapping[str, Visitor],
) -> None:
    """Run a network with other weights, once, showing chosen layers' inputs on the way.

    A visitor sees its layer's input [n, in_features], samples and tokens in one dimension,
    when the layer is first called and before it computes. It may change tensors of `state`
    in place; the layer and all later ones use the changed values. The network's own weights,
    modes and hooks stay as they are.

    Args:
        model: Any network.
        state: Tensors by the names of the network's state dict, used in place of its own.
        inputs: One batch.
        visitors: Module name to visitor.

    Raises:
        InputError: A visited layer was never called.
    """
    waiting = dict(visitors)

    def show(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if visitor := waiting.pop(name, None):
                visitor(args[0].detach().flatten(0, -2))

        return hook

    with evaluating(model), ExitStack() as stack:
        for name in visitors:
            handle = model.get_submodule(name).register_forward_pre_hook(show(name))
            stack.callback(handle.remove)
        torch.func.functional_call(model, dict(state), (inputs,))
    if waiting:
        raise InputError(
            f"layers={list(waiting)}: not called when the model runs on the given inputs; "
            "leave them out"
        )
