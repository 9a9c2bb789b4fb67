"""Tracing of networks: the modules that are called, and their inputs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.hooks import Args, Kwargs, hooked
from lightning_merge.core.networks.padding import tokens_now

Visitor = Callable[[Tensor], None]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode without gradients; restore each module's mode after.

    Examples:
        >>> network = nn.Dropout()
        >>> with evaluating(network):
        ...     network(torch.ones(3)), network.training
        (tensor([1., 1., 1.]), False)
        >>> network.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def tied_names(model: nn.Module) -> dict[str, str]:
    """Map every name of the state dict to the first name of the same tensor: itself, unless tied.

    Examples:
        >>> network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        >>> network[1].weight = network[0].weight
        >>> tied_names(network)
        {'0.weight': '0.weight', '1.weight': '0.weight'}
    """
    first: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}


@contextmanager
def input_errors(inputs: Tensor) -> Iterator[None]:
    """Report inputs that a network rejects when it first runs on them.

    Raises:
        InputError: The network raised an error.

    Examples:
        >>> with input_errors(torch.zeros(1, 3)):
        ...     nn.Linear(4, 2)(torch.zeros(1, 3))
        Traceback (most recent call last):
        lightning_merge.core.errors.InputError: batches: the network does not accept inputs of shape
        [n, 3]: mat1 and mat2 shapes cannot be multiplied (1x3 and 4x2)
    """
    try:
        yield
    except (RuntimeError, ValueError, AssertionError, IndexError) as fault:
        raise InputError(
            f"batches: the network does not accept inputs of shape [n, "
            f"{', '.join(map(str, inputs.shape[1:]))}]: {str(fault).splitlines()[0]}"
        ) from fault


def run_visiting(
    model: nn.Module,
    state: Mapping[str, Tensor],
    inputs: Tensor,
    visitors: Mapping[str, Visitor],
) -> None:
    """Run a network once with other weights, showing the inputs of chosen layers on the way.

    A visitor gets its layer's input [n, ...] when the layer is first called, before it computes.
    It may change tensors of `state` in place; this layer and all later ones use the changed values.
    The network's own weights, modes and hooks stay as they are.

    Args:
        model: Any network.
        state: Tensors by the names of the network's state dict, used in place of its own; of
            tied ones one name is enough.
        inputs: One batch.
        visitors: Module name to visitor.

    Raises:
        InputError: A visited layer was never called.

    Examples:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(6, 1))
        >>> visitors = {"1": lambda inputs: print(inputs.shape)}
        >>> run_visiting(network, network.state_dict(), torch.zeros(4, 2, 3), visitors)
        torch.Size([4, 6])
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
    """Signal that a forward pass has reached the requested module."""


class Call(NamedTuple):
    """A call of a module within a network.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        tokens: What was said by `padded` when it was called.

    Examples:
        >>> Call((1,), {}).tokens
        ()
    """

    args: Args
    kwargs: Kwargs
    tokens: tuple[Tensor, ...] = ()


def arguments_of(model: nn.Module, state: Mapping[str, Tensor], inputs: Tensor, name: str) -> Call:
    """Return the arguments of a module's first call; the network runs no further than that.

    Args:
        model: Any network; it comes back unchanged.
        state: Tensors by the names of the network's state dict, used in place of its own; of
            tied ones one name is enough.
        inputs: One batch.
        name: The module's name, "" for the network itself.

    Raises:
        InputError: The module was never called.

    Examples:
        >>> network = nn.Sequential(nn.ReLU(), nn.Linear(2, 1))
        >>> arguments_of(network, network.state_dict(), torch.tensor([[-1.0, 3.0]]), "1")
        Call(args=(tensor([[0., 3.]]),), kwargs={}, tokens=())
    """
    arguments: list[Call] = []

    def stop(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        arguments.append(Call(args, kwargs, tokens_now()))
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
    """Return the names of the modules that a network calls, in the order of their first calls.

    Examples:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> called_modules(network, torch.zeros(1, 2))
        ['', '0', '1']
    """
    called: dict[str, None] = {}

    def note(name: str, module: nn.Module, args: Args, _: Kwargs) -> None:
        called.setdefault(name)

    hooks = {name: partial(note, name) for name, _ in model.named_modules()}
    with evaluating(model), hooked(model, hooks):
        model(inputs)
    return list(called)


def repeated_blocks(model: nn.Module) -> set[str]:
    """Return the names of the blocks that a network repeats, as transformers and ResNets do.

    A block is an element of an `nn.ModuleList` or `nn.Sequential` in which at least two elements
    have matrices as parameters. Those elements must all be of one class and hold matrices in at
    least two modules each. Of nested blocks the innermost count.

    Examples:
        >>> blocks = [nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)) for _ in range(2)]
        >>> sorted(repeated_blocks(nn.Sequential(*blocks, nn.LayerNorm(2))))
        ['0', '1']
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
