"""Linear and convolutional layers of a network, and the activations that follow them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_merge.core.networks.hooks import After, Args, Before, Kwargs, hooked
from lightning_merge.core.networks.padding import unpadded
from lightning_merge.core.networks.tracing import evaluating

Activation = Callable[[Tensor], Tensor]


class AffineLayer(NamedTuple):
    """A linear or convolutional module with any BatchNorm and activation that follow.

    Attributes:
        names: Names of the modules before the activation, in order.
        modules: These modules; in evaluation their composition is affine in its input.
        activation: Activation of their output; None if no activation module follows.

    Examples:
        >>> layer = AffineLayer(("conv",), (nn.Conv2d(3, 8, 5),), nn.ReLU())
        >>> layer.node_dim  # channels of [n, 8, height, width]
        -3
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    activation: Activation | None

    @property
    def node_dim(self) -> int:
        """Dimension of the output, counted from the end, along which its nodes lie."""
        first = self.modules[0]
        return -1 - len(first.kernel_size) if isinstance(first, _ConvNd) else -1

    def pre_activations(
        self, inputs: Tensor, stacks: Sequence[Mapping[str, Tensor]], entries: int
    ) -> Iterator[tuple[float, Tensor]]:
        """Yield the pre-activations of every expert, for some inputs at a time.

        Args:
            inputs: Inputs of the first module, [n, ...].
            stacks: Floating-point tensors [K, ...] of each module, by their names in it.
            entries: Approximate number of pre-activations in memory at a time.

        Yields:
            The share of the inputs, and their pre-activations [K, samples, nodes]; tokens and
            positions are samples.
        """
        experts = [
            [{name: stack[k] for name, stack in own.items()} for own in stacks]
            for k in range(len(next(iter(stacks[0].values()))))
        ]
        inputs = unpadded(inputs)
        one = self._hidden(inputs[:1], experts[0])
        size = max(1, entries // max(1, len(experts) * one.numel()))
        for chunk in inputs.split(size):
            hidden = torch.stack([self._hidden(chunk, expert) for expert in experts])
            yield len(chunk) / len(inputs), hidden

    def _hidden(self, inputs: Tensor, tensors: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return pre-activations [samples, nodes] with other tensors in the modules."""
        for module, own in zip(self.modules, tensors, strict=True):
            inputs = functional_call(module, dict(own), (inputs,), tie_weights=False)
        return inputs.movedim(self.node_dim, -1).flatten(0, -2)


def affine_layers(model: nn.Module, inputs: Tensor) -> list[AffineLayer]:
    """Find every linear or convolutional module whose output goes into an activation module.

    See `affine_chains`. There is no such layer if anything else happens in between, such as the
    addition of a shortcut in a residual block or another normalisation.

    Examples:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [layer.names for layer in affine_layers(network, torch.zeros(1, 4))]
        [('0',)]
    """
    return [layer for layer in affine_chains(model, inputs) if layer.activation is not None]


def affine_chains(model: nn.Module, inputs: Tensor) -> list[AffineLayer]:
    """Find every linear or convolutional module, and the modules that follow it.

    A BatchNorm that follows belongs to the layer. One that also computes the activation, as timm's
    `BatchNormAct2d` does, counts as BatchNorm followed by its `act`; see `Normalisation`. Modules
    that pass their input on, such as Dropout in evaluation, are skipped. Modules are left out if
    they feed a BatchNorm that has no running statistics or computes anything else.

    Args:
        model: Any network; it comes back unchanged.
        inputs: A small batch that the network accepts, [n, ...].

    Returns:
        The layers in the order of execution; without activation if no activation module follows.

    Examples:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        >>> (layer,) = affine_chains(network, torch.zeros(1, 3, 2, 2))
        >>> layer.names, layer.activation
        (('0', '1'), ReLU())
    """
    chains = _Chains()
    with evaluating(model), hooked(model, *chains.hooks(model)):
        model(inputs)
    return chains.layers(model)


class _Chains:
    """A record, made by hooks, of which module of a network feeds which.

    Tensors are identified by `id`, and kept alive so that no other tensor reuses it.
    """

    def __init__(self) -> None:
        self._outputs: dict[int, tuple[tuple[str, ...], Tensor, int]] = {}
        self._chains: dict[str, tuple[str, ...]] = {}
        self._activations: dict[str, tuple[tuple[str, ...], Activation]] = {}

    def hooks(self, model: nn.Module) -> tuple[dict[str, Before], dict[str, After]]:
        """Return the arguments of `hooked`, chosen by the kind of each module."""
        before: dict[str, Before] = {}
        after: dict[str, After] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | _ConvNd):
                after[name] = partial(self._begin, name)
            elif isinstance(getattr(module, "running_mean", None), Tensor):
                after[name] = partial(self._normalise, name)
            elif isinstance(module, _BatchNorm):
                before[name] = self._leave_out
            elif not [*module.children(), *module.parameters()]:
                before[name] = self._end
        return before, after

    def layers(self, model: nn.Module) -> list[AffineLayer]:
        """Return every chain as a layer, up to its activation if there is one."""
        layers = []
        for first, chain in self._chains.items():
            names, activation = self._activations.get(first, (chain, None))
            modules = (_affine_part(model.get_submodule(name)) for name in names)
            layers.append(AffineLayer(names, tuple(modules), activation))
        return layers

    def _before(self, args: Args) -> tuple[str, ...] | None:
        """Return the chain whose output this is, unless it was since changed in place."""
        names, tensor, version = self._outputs.get(id(args[0]) if args else 0, ((), None, 0))
        return names if tensor is not None and tensor._version == version else None

    def _begin(self, name: str, module: nn.Module, args: Args, _: Kwargs, output: Tensor) -> None:
        self._outputs[id(output)] = ((name,), output, output._version)
        self._chains.setdefault(name, (name,))

    def _normalise(
        self, name: str, module: nn.Module, args: Args, _: Kwargs, output: Tensor
    ) -> None:
        if not (before := self._before(args)):
            return
        if not _normalises(module, args[0], output):
            self._chains.pop(before[0], None)
            return
        names = (*before, name)
        if self._chains.get(names[0]) == before:
            self._chains[names[0]] = names
        act = getattr(module, "act", None)
        if isinstance(act, nn.Module) and is_activation(act, output.device):
            self._activations.setdefault(names[0], (names, act))
        else:
            self._outputs[id(output)] = (names, output, output._version)

    def _end(self, module: nn.Module, args: Args, _: Kwargs) -> None:
        names = self._before(args)
        if names and names[0] not in self._activations and is_activation(module, args[0].device):
            self._activations[names[0]] = names, module

    def _leave_out(self, module: nn.Module, args: Args, _: Kwargs) -> None:
        if names := self._before(args):
            self._chains.pop(names[0], None)


class Normalisation(nn.Module):
    """A module with running statistics in evaluation, without any activation that it computes.

    It has the same tensors under the same names.

    Args:
        module: A BatchNorm, frozen or not, that may have an activation.

    Examples:
        >>> norm = nn.BatchNorm1d(1)
        >>> norm.act = nn.ReLU()
        >>> with torch.no_grad():
        ...     Normalisation(norm)(torch.tensor([[-1.0]])).round(decimals=3)
        tensor([[-1.]])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._parameters, self._buffers = module._parameters, module._buffers
        self.eps = getattr(module, "eps", 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [n, C, ...] by the running statistics."""
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        weight, bias = getattr(self, "weight", None), getattr(self, "bias", None)
        return functional.batch_norm(x, mean, variance, weight, bias, eps=self.eps)


def _affine_part(module: nn.Module) -> nn.Module:
    """Return a module, without the activation that it computes if it has one."""
    return Normalisation(module) if [*module.children()] else module


def _normalises(module: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    """Return whether a module's output is that of BatchNorm, followed by its `act` if it has one.

    `drop` of timm's does nothing in evaluation. That nothing else happens is computed, not assumed.
    """
    if not {name for name, _ in module.named_children()} <= {"act", "drop"}:
        return False
    expected = Normalisation(module)(inputs)
    expected = getattr(module, "act", nn.Identity())(expected)
    scale = float(output.abs().max())
    return torch.allclose(output.float(), expected.float(), rtol=1e-2, atol=1e-2 * scale)


def has_rows_of_nodes(module: nn.Module) -> bool:
    """Return whether row j of a module's weight [out, ...] computes output feature or channel j.

    A weight that is computed from others, as in weight normalisation, has no rows of its own.

    Examples:
        >>> has_rows_of_nodes(nn.Linear(3, 2)), has_rows_of_nodes(nn.ConvTranspose2d(3, 2, 1))
        (True, False)
    """
    stored = dict(module.named_parameters(recurse=False))
    affine = isinstance(module, (nn.Linear, _ConvNd)) and not isinstance(module, _ConvTransposeNd)
    return affine and "weight" in stored


def is_activation(module: nn.Module, device: torch.device | None = None) -> bool:
    """Return whether a module without parameters is element-wise and not affine.

    Identity, Dropout and Softmax are not activations in this sense.

    Examples:
        >>> is_activation(nn.GELU()), is_activation(nn.Softmax(-1))
        (True, False)
    """
    probe = torch.linspace(-8.0, 8.0, 33, device=device)
    try:
        whole, start = module.forward(probe.clone()), module.forward(probe[:6].clone())
        curvature = whole.diff(n=2).abs().max()  # zero for affine functions on an even grid
        return torch.allclose(whole[:6], start) and bool(curvature > 1e-3)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return False
