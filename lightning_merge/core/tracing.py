"""Layers and blocks inside a network: which there are, and what goes into them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
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


class _Reached(Exception):
    """Ends a forward pass at the module that was asked for."""


def arguments_of(
    model: nn.Module, state: Mapping[str, Tensor], inputs: Tensor, name: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module is first called with; the network runs up to there, with other weights.

    Args:
        model: Any network; it comes back unchanged.
        state: Tensors by the names of the network's state dict, used in place of its own.
        inputs: One batch.
        name: The module's name, "" for the network itself.

    Returns:
        Positional and keyword arguments.

    Raises:
        InputError: The module was never called.
    """
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise _Reached

    handle = model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
    with evaluating(model), ExitStack() as stack:
        stack.callback(handle.remove)
        with suppress(_Reached):
            torch.func.functional_call(model, dict(state), (inputs,), tie_weights=False)
    if not found:
        raise InputError(
            f"batches: {name} is not called when the model runs on all of the given inputs; "
            "choose a method that does not visit it"
        )
    return found[0]


def called_modules(model: nn.Module, inputs: Tensor) -> list[str]:
    """Names of the modules that a network calls, in the order of their first calls."""
    called: dict[str, None] = {}
    with evaluating(model), ExitStack() as stack:
        for name, module in model.named_modules():
            note = partial(_note, called, name)
            stack.callback(module.register_forward_pre_hook(note).remove)
        model(inputs)
    return list(called)


def _note(called: dict[str, None], name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
    called.setdefault(name)


def repeated_blocks(model: nn.Module) -> set[str]:
    """Names of the blocks that a network repeats, as transformers and ResNets do.

    A block is an element of an `nn.ModuleList` or `nn.Sequential` in which at least two elements
    have parameters that are matrices, all of one class, each in at least two modules. Of nested
    blocks the innermost count.
    """
    found: set[str] = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        parts = {n: part for n, part in module.named_children() if _owners_of_matrices(part)}
        alike = len({type(part) for part in parts.values()}) == 1 < len(parts)
        if alike and all(_owners_of_matrices(part) > 1 for part in parts.values()):
            found |= {f"{name}.{n}" if name else n for n in parts}
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def _owners_of_matrices(module: nn.Module) -> int:
    """Number of modules that have a parameter of two or more dimensions themselves."""
    parts = [part.parameters(recurse=False) for part in module.modules()]
    return sum(any(tensor.dim() > 1 for tensor in own) for own in parts)
