"""Hooks on the modules of a network for the duration of a block of code."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Before = Callable[[nn.Module, Args, Kwargs], None]
"""Called with a module and the positional and keyword arguments of its call."""
After = Callable[[nn.Module, Args, Kwargs, Any], None]
"""Called with the same and the module's output."""


@contextmanager
def hooked(
    model: nn.Module,
    before: Mapping[str, Before],
    after: Mapping[str, After] | None = None,
) -> Iterator[None]:
    """Call functions whenever a network calls chosen modules; remove the hooks at the end.

    Args:
        model: The network.
        before: Name of a module, "" for the network itself, to a function of its arguments.
        after: The same, to a function of its arguments and output.

    Raises:
        AttributeError: The network has no module of that name.

    Examples:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> with hooked(network, {"1": lambda module, args, kwargs: print(args[0].shape)}):
        ...     _ = network(torch.zeros(2, 4))
        torch.Size([2, 3])
    """
    with ExitStack() as stack:
        for name, see in before.items():
            module = model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(see, with_kwargs=True).remove)
        for name, look in (after or {}).items():
            module = model.get_submodule(name)
            stack.callback(module.register_forward_hook(look, with_kwargs=True).remove)
        yield
