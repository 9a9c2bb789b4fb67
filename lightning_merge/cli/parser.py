"""A parser whose errors are one message."""

import difflib
import re
from typing import NoReturn

from jsonargparse import ArgumentParser

from lightning_merge.core.errors import InputError
from lightning_merge.methods.base import Method, Transform, registered
from lightning_merge.methods.network import NetworkMethod


class Parser(ArgumentParser):
    """Says what is wrong with the options, and not how all of them are used."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as an InputError.

        Raises:
            InputError: always.
        """
        raise InputError(explained(message)) from ex


def explained(message: str) -> str:
    """Return jsonargparse's message, in our words where a method's name is misspelt."""
    misspelt = re.search(r"Expected a dot import path string: (\w+)", message)
    if misspelt is None or "method" not in message:
        return message
    name = misspelt[1]
    if name in registered(Transform):  # type: ignore[type-abstract]
        return (
            f"method {name!r} is a transform: give a method, and "
            f"--method.transforms '[{{class_path: {name}}}]'"
        )
    if name in registered(NetworkMethod):  # type: ignore[type-abstract]
        return (
            f"method {name!r} returns a network that one set of weights cannot stand for: put it "
            "into a run's trainer.callbacks, {class_path: lightning_merge.callbacks.MergeCallback, "
            f"init_args: {{method: {{class_path: {name}}}}}}}, or call {name}()(base, experts, "
            "model=...) in Python"
        )
    kind = Transform if "transforms" in message.partition(name)[0] else Method
    known = list(registered(kind))  # type: ignore[type-abstract]
    near = difflib.get_close_matches(name, known, 1, 0.4)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{kind.__name__.lower()} {name!r} is unknown: {meant}There are {', '.join(known)}"
