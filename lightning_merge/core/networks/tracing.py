"""What happens inside a network: which modules it calls, and with what."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.hooks import Args, Kwargs, hooked

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


def tied_names(model: nn.Module) -> dict[str, str]:
    """Every name of the state dict to the first name of the same tensor: itself, unless tied."""
    first: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}


@contextmanager
def input_errors(inputs: Tensor) -> Iterator[None]:
    """While a network runs on inputs for the first time, say so if it does not take them.

    Raises:
        InputError: Whatever the network raised.
    """
    try:
        yield
    except (RuntimeError, ValueError, AssertionError, IndexError) as fault:
        raise InputError(
            f"batches: the network does not take inputs of shape [n, "
            f"{', '.join(map(str, inputs.shape[1:]))}]: {str(fault).splitlines()[0]}"
        ) from fault


def run_visiting(
    model: nn.Module,
    state: Mapping[str, Tensor],
    inputs: Tensor,
    visitors: Mapping[str, Visitor],
) -> None:
    """Run a network with other weights, once, showing chosen layers' inputs on the way.

    A visitor sees its layer's input [n, ...] when the layer is first called and before it computes.
    It may change tensors of `state` in place; the layer and all later ones use the changed values.
    The network's own weights, modes and hooks stay as they are.

    Args:
        model: Any network.
        state: Tensors by the names of the network's state dict, used in place of its own; of
            tied ones one name is enough.
        inputs: One batch.
        visitors: Module name to visitor.

    Raises:
        InputError: A visited layer was never called.
    """
    waiting = dict(visitors)

    def show(name: str, module: nn.Module, args: Args, _: Kwargs) -> None:
        if visitor := waiting.pop(name, None):
            visitor(args[0].detach())

    hooks = {name: partial(show, name) for name in visitors}
    with evaluating(model), hooked(model, hooks):
        functional_call(model, dict(state), (inputs,))
    if waiting:
        raise InputError(
            f"layers={list(waiting)}: not called when the model runs on the given inputs; "
            "leave them out"
        )


class _Reached(Exception):
    """Ends a forward pass at the module that was asked for."""


def arguments_of(
    model: nn.Module, state: Mapping[str, Tensor], inputs: Tensor, name: str
) -> tuple[Args, Kwargs]:
    """Return what a module is first called with; the network runs up to there, with other weights.

    Args:
        model: Any network; it comes back unchanged.
        state: Tensors by the names of the network's state dict, used in place of its own; of
            tied ones one name is enough.
        inputs: One batch.
        name: The module's name, "" for the network itself.

    Returns:
        Positional and keyword arguments.

    Raises:
        InputError: The module was never called.
    """
    arguments: list[tuple[Args, Kwargs]] = []

    def stop(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        arguments.append((args, kwargs))
        raise _Reached

    with evaluating(model), hooked(model, {name: stop}), suppress(_Reached):
        functional_call(model, dict(state), (inputs,))
    if not arguments:
        raise InputError(
            f"batches: {name} is not called when the model runs on all of the given inputs; "
            "choose a method that does not visit it"
        )
    return arguments[0]


def called_modules(model: nn.Module, inputs: Tensor) -> list[str]:
    """Names of the modules that a network calls, in the order of their first calls."""
    called: dict[str, None] = {}

    def note(name: str, module: nn.Module, args: Args, _: Kwargs) -> None:
        called.setdefault(name)

    hooks = {name: partial(note, name) for name, _ in model.named_modules()}
    with evaluating(model), hooked(model, hooks):
        model(inputs)
    return list(called)


def repeated_blocks(model: nn.Module) -> set[str]:
    """Names of the blocks that a network repeats, as transformers and ResNets do.

    A block is an element of an `nn.ModuleList` or `nn.Sequential` in which at least two elements
    have parameters that are matrices, all of one class, each in at least two modules. Of nested
    blocks the innermost count.
    """
    blocks: set[str] = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        parts = {n: part for n, part in module.named_children() if _owners_of_matrices(part)}
        alike = len({type(part) for part in parts.values()}) == 1 < len(parts)
        if alike and all(_owners_of_matrices(part) > 1 for part in parts.values()):
            blocks |= {f"{name}.{n}" if name else n for n in parts}
    return {name for name in blocks if not any(other.startswith(f"{name}.") for other in blocks)}


def _owners_of_matrices(module: nn.Module) -> int:
    """Return the number of modules that have a parameter of two or more dimensions themselves."""
    parts = [part.parameters(recurse=False) for part in module.modules()]
    return sum(any(tensor.dim() > 1 for tensor in own) for own in parts)
