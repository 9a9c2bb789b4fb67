"""Layers and blocks inside a network: which there are, and what goes into them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_merge.core.errors import InputError

Activation = Callable[[Tensor], Tensor]
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


class AffineLayer(NamedTuple):
    """A linear or convolutional module, BatchNorm behind it if there is any, and an activation.

    Attributes:
        names: Of the modules before the activation, in order.
        modules: These modules; in evaluation their composition is affine in its input.
        activation: What their output goes into; None if that is no activation module.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    activation: Activation | None

    @property
    def node_dim(self) -> int:
        """Dimension of the output, from the end, along which its nodes lie."""
        first = self.modules[0]
        return -1 - len(first.kernel_size) if isinstance(first, _ConvNd) else -1

    def pre_activations(
        self, inputs: Tensor, stacks: Sequence[Mapping[str, Tensor]], entries: int
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield what goes into the activation of every expert, some inputs at a time.

        Args:
            inputs: Of the first module, [n, ...].
            stacks: Floating-point tensors [K, ...] of each module by their names in it.
            entries: Pre-activations in memory at a time, about.

        Yields:
            The share of the inputs, and their pre-activations [K, samples, nodes]; tokens and
            positions are samples.
        """
        experts = [
            [{name: stack[k] for name, stack in own.items()} for own in stacks]
            for k in range(len(next(iter(stacks[0].values()))))
        ]
        one = self._hidden(inputs[:1], experts[0])
        size = max(1, entries // max(1, len(experts) * one.numel()))
        for chunk in inputs.split(size):
            hidden = torch.stack([self._hidden(chunk, expert) for expert in experts])
            yield len(chunk) / len(inputs), hidden

    def _hidden(self, inputs: Tensor, tensors: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Pre-activations [samples, nodes] with other tensors of the modules."""
        for module, own in zip(self.modules, tensors, strict=True):
            inputs = functional_call(module, dict(own), (inputs,), tie_weights=False)
        return inputs.movedim(self.node_dim, -1).flatten(0, -2)


def affine_layers(model: nn.Module, inputs: Tensor) -> list[AffineLayer]:
    """Find every linear or convolutional module that goes into an activation module.

    See `affine_chains`; where anything else happens in between, as the addition of a shortcut in a
    residual block, or another normalisation, there is no such layer.
    """
    return [layer for layer in affine_chains(model, inputs) if layer.activation is not None]


def affine_chains(model: nn.Module, inputs: Tensor) -> list[AffineLayer]:
    """Find every linear or convolutional module, and what is behind it.

    BatchNorm behind it belongs to the layer, and modules that pass their input on, such as Dropout
    in evaluation, do not count. Those that go into a BatchNorm that computes the activation, too,
    as timm's does, or that has no statistics of its own, are left out.

    Args:
        model: Any network; it comes back unchanged.
        inputs: A small batch that the network accepts, [n, ...].

    Returns:
        The layers in the order of execution; without activation where no module is one.
    """
    passed: dict[int, tuple[tuple[str, ...], Tensor, int]] = {}
    chains: dict[str, tuple[str, ...]] = {}
    activations: dict[str, tuple[tuple[str, ...], Activation]] = {}

    def known(args: tuple[Any, ...]) -> tuple[str, ...] | None:
        """The modules whose output this is, unless it was changed in place since."""
        names, tensor, version = passed.get(id(args[0]) if args else 0, ((), None, 0))
        return names if tensor is not None and tensor._version == version else None

    def remember(name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        before = known(args) if isinstance(module, _BatchNorm) else ()
        if before is None:
            return
        names = (*before, name)
        passed[id(output)] = (names, output, output._version)
        if chains.setdefault(names[0], names) == before:
            chains[names[0]] = names

    def look_up(module: nn.Module, args: tuple[Any, ...]) -> None:
        names = known(args)
        if names and names[0] not in activations and is_activation(module, args[0].device):
            activations[names[0]] = names, module

    def leave_out(_: nn.Module, args: tuple[Any, ...]) -> None:
        if names := known(args):
            chains.pop(names[0], None)

    with evaluating(model), ExitStack() as stack:
        for name, module in model.named_modules():
            if _is_affine(module):
                hook: Callable[..., None] = partial(remember, name)
                stack.callback(module.register_forward_hook(hook).remove)
            elif isinstance(module, _BatchNorm):
                stack.callback(module.register_forward_pre_hook(leave_out).remove)
            elif not [*module.children(), *module.parameters()]:
                stack.callback(module.register_forward_pre_hook(look_up).remove)
        model(inputs)
    found = {name: activations.get(name, (names, None)) for name, names in chains.items()}
    return [
        AffineLayer(names, tuple(model.get_submodule(name) for name in names), activation)
        for names, activation in found.values()
    ]


def _is_affine(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm):  # not those that compute the activation, too
        return module.running_mean is not None and not [*module.children()]
    return isinstance(module, (nn.Linear, _ConvNd))


def has_rows_of_nodes(module: nn.Module) -> bool:
    """Whether row j of a module's weight [out, ...] makes output feature or channel j.

    A weight that is computed from others, as in weight normalisation, has no rows of its own.
    """
    stored = dict(module.named_parameters(recurse=False))
    affine = isinstance(module, (nn.Linear, _ConvNd)) and not isinstance(module, _ConvTransposeNd)
    return affine and "weight" in stored


def is_activation(module: nn.Module, device: torch.device | None = None) -> bool:
    """Whether a module without parameters works entry by entry and is not affine.

    So neither Identity nor Dropout nor Softmax is one.
    """
    probe = torch.linspace(-3.0, 3.0, 13, device=device)
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

    def show(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if visitor := waiting.pop(name, None):
                visitor(args[0].detach())

        return hook

    with evaluating(model), ExitStack() as stack:
        for name in visitors:
            handle = model.get_submodule(name).register_forward_pre_hook(show(name))
            stack.callback(handle.remove)
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
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module is first called with; the network runs up to there, with other weights.

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
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise _Reached

    handle = model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
    with evaluating(model), ExitStack() as stack:
        stack.callback(handle.remove)
        with suppress(_Reached):
            functional_call(model, dict(state), (inputs,))
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
