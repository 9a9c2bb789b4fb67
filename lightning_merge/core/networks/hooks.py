"""Hooks on the modules of a network, for as long as a block of code runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Before = Callable[[nn.Module, Args, Kwargs], None]
"""Takes a module, and the positional and keyword arguments that it is called with."""
After = Callable[[nn.Module, Args, Kwargs, Any], None]
"""Takes the same and what the module has returned."""


@contextmanager
def hooked(
    model: nn.Module,
    before: Mapping[str, Before],
    after: Mapping[str, After] | None = None,
) -> Iterator[None]:
    """Call functions whenever a network calls chosen modules; remove the hooks at the end.

    Args:
        model: The network.
        before: Name of a module, "" for the network's own, to what sees its arguments.
        after: The same to what also sees its output.

    Raises:
        AttributeError: The network has no module of a name.
    """
    with ExitStack() as stack:
        for name, see in before.items():
            module = model.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(see, with_kwargs=True).remove)
        for name, look in (after or {}).items():
            module = model.get_submodule(name)
            stack.callback(module.register_forward_hook(look, with_kwargs=True).remove)
        yield
