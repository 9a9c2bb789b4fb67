"""MLPs of the numbered blocks of Transformers: where they are, and what they are called with."""

import re
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.hooks import Args, Kwargs, hooked
from lightning_merge.core.networks.padding import tokens_of

_SPLIT = ".output.dense"
"""End of the name of BERT's second layer of an MLP, whose first one is ``intermediate``."""


def has_mlps(model: nn.Module) -> bool:
    """Whether a network has MLPs in numbered blocks.

    Examples:
        >>> has_mlps(nn.Linear(1, 1))
        False
    """
    return bool(_whole(model)) or bool(_split(model))


def join_mlp(network: nn.Module, name: str) -> list[str]:
    """Make an MLP whose layers stand apart, as BERT's do, one module; others stay as they are.

    Args:
        network: The network; it is changed.
        name: Name of the MLP, as `find_mlps` returns it.

    Returns:
        Names of the MLP's parameters in the network as it was, in the order of the module's.

    Examples:
        >>> layer = nn.ModuleDict({"dense": nn.Linear(2, 4)})
        >>> block = nn.ModuleDict({"intermediate": layer, "output": nn.ModuleDict()})
        >>> block["output"]["dense"] = nn.Linear(4, 2)
        >>> model = nn.Sequential(block)
        >>> join_mlp(model, "0.output.dense")[::2]
        ['0.intermediate.dense.weight', '0.output.dense.weight']
        >>> [type(part).__name__ for part in model.get_submodule("0.output.dense")]
        ['ModuleDict', 'Linear']
    """
    names = {id(parameter): own for own, parameter in network.named_parameters()}
    if name.endswith(_SPLIT):
        first = f"{name.removesuffix(_SPLIT)}.intermediate"
        parts = network.get_submodule(first), network.get_submodule(name)
        network.set_submodule(name, nn.Sequential(*parts))
        network.set_submodule(first, nn.Identity())
    return [names[id(parameter)] for parameter in network.get_submodule(name).parameters()]


def _whole(model: nn.Module) -> list[str]:
    """Return MLPs that are one module of a numbered block, with at least two linear layers."""
    return [
        name
        for name, module in model.named_modules()
        if re.search(r"(^|\.)\d+\.(mlp|ffn|DenseReluDense)$", name) and _linear(module) > 1
    ]


def _split(model: nn.Module) -> list[str]:
    """Return MLPs in two modules of a numbered block, by the name of the second."""
    return [
        f"{name}{_SPLIT}"
        for name, block in model.named_modules()
        if re.search(r"(^|\.)\d+$", name)
        and _linear(getattr(block, "intermediate", None)) == 1
        and isinstance(getattr(getattr(block, "output", None), "dense", None), nn.Linear)
    ]


def _linear(module: nn.Module | None) -> int:
    """Return the number of linear layers in a module."""
    return 0 if module is None else sum(isinstance(part, nn.Linear) for part in module.modules())


@torch.no_grad()
def find_mlps(model: nn.Module, image: Tensor) -> tuple[dict[str, tuple[int, int]], int]:
    """Find the MLPs of numbered blocks and the shapes of their inputs.

    Args:
        model: A network with such MLPs; it is left unchanged.
        image: An input of the network, [1, ...].

    Returns:
        Name of each MLP called to the width and number of an image's tokens; and the dimension of
        the MLPs' inputs that indexes images.

    Raises:
        InputError: No MLP is called, one is called several times, or no dimension of its input
            indexes images.

    Examples:
        >>> from collections import OrderedDict
        >>> mlp = nn.Sequential(nn.Linear(2, 4), nn.GELU(), nn.Linear(4, 2))
        >>> model = nn.Sequential(nn.Sequential(OrderedDict(mlp=mlp)))
        >>> find_mlps(model, torch.ones(1, 5, 2))
        ({'0.mlp': (2, 5)}, 0)
    """
    network = deepcopy(model).eval()
    split = _split(network)
    for name in split:
        join_mlp(network, name)
    names = _whole(network) + split
    one, two = (_inputs(network, names, images) for images in (image, torch.cat([image, image])))
    if not one or any(len(shapes) > 1 for shapes in one.values()):
        repeated = ", ".join(f"{name} is called {len(s)} times" for name, s in one.items() if s[1:])
        raise InputError(
            f"model={type(model).__name__}: {repeated or 'none of its MLPs is called'}; WEMoE puts "
            "a router in front of MLPs that are called once; choose another method"
        )
    dims = {_batch_dim(one[name][0], two[name][0]) for name in one}
    batch_dim = dims.pop()
    if dims or batch_dim is None:
        raise InputError(
            f"model={type(model).__name__}: its MLPs take inputs of shapes "
            f"{[list(shapes[0]) for shapes in two.values()]} for two images; WEMoE needs one "
            "tensor with a dimension of images, the same for all; choose another method"
        )
    sizes = {name: (s[-1], s.numel() // s[-1]) for name, [s] in one.items()}
    return sizes, batch_dim


def _inputs(network: nn.Module, names: list[str], images: Tensor) -> dict[str, list[torch.Size]]:
    """Return the shapes each MLP is called with, in order; empty if not a single tensor.

    A row of text is a sample, though an example may have several, such as the texts of a pair.
    """
    shapes: dict[str, list[torch.Size]] = {}

    def note(name: str, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        shape = args[0].shape if len(args) == 1 and not kwargs else torch.Size()
        if len(shape) and tokens_of(args[0]) is not None:
            shape = torch.Size([len(images), *shape[1:]])
        shapes.setdefault(name, []).append(shape)

    with hooked(network, {name: partial(note, name) for name in names}):
        network(images)
    return shapes


def _batch_dim(one: torch.Size, two: torch.Size) -> int | None:
    """Return the only dimension before the last that is 1 for one image and 2 for two."""
    counting = [i for i, sizes in enumerate(zip(one, two, strict=False)) if sizes[0] != sizes[1]]
    if len(counting) != 1 or len(one) < 2:
        return None
    [dim] = counting
    return dim if (one[dim], two[dim]) == (1, 2) and dim < len(one) - 1 else None
