"""A parser that reports each error as one message; only some messages need torch."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from lightning_merge.core.errors import InputError
from lightning_merge.core.subclasses import concrete

KINDS = {
    "method": "lightning_merge.methods.base.Method",
    "transforms": "lightning_merge.methods.base.Transform",
    "encoder": "lightning_merge.models.encoder.Encoder",
    "model": "lightning_merge.modules.base.TaskModule",
    "callbacks": "lightning.pytorch.callbacks.Callback",
}
"""Last word of an option -> base class of the classes it takes."""

TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "a mapping",
    "list": "a list",
    "collections.abc.Sequence": "a list",
    "collections.abc.Mapping": "a mapping",
}


class UsageError(InputError):
    """An error that jsonargparse found in the options; see `explained`."""


class ConfigFile(ActionConfigFile):
    """A config whose lists replace those of earlier configs.

    jsonargparse lays lists of the same length over each other, so that the first callback of one
    config would take what it leaves out from the first callback of the other.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        """Forget earlier values of the lists that a file has, then take its values."""
        for key in _lists(_content(values)):
            cfg.pop(key, None)
        super().__call__(parser, cfg, values, option_string)


def _content(file: Any) -> Any:
    """Return what a config file has; None if it cannot be read, which is reported elsewhere."""
    try:
        return yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError, yaml.YAMLError):
        return None


def _lists(value: Any, place: str = "") -> Iterator[str]:
    """Yield the place of every list in nested mappings, as in trainer.callbacks."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        if isinstance(inner, list):
            yield f"{place}{key}"
        else:
            yield from _lists(inner, f"{place}{key}.")


class Parser(ArgumentParser):
    """A parser whose errors say what is wrong, without printing the full usage."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Add an option; config files are laid over each other as `ConfigFile` says."""
        if kwargs.get("action") in ("config", ActionConfigFile):
            kwargs["action"] = ConfigFile
        return super().add_argument(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message as an InputError.

        Raises:
            UsageError: Always.
        """
        if unknown := re.match(r"unrecognized arguments: --(\S+?)(?:[= ]|$)", message):
            known = [option.removeprefix("--") for option in self._option_string_actions]
            near = _near(unknown[1], known, "--")
            message = f"unknown option --{unknown[1]}{near}"
        raise UsageError(message) from ex


def explained(message: str) -> str:
    """Return the error on one line: the option, its value, and the likely intention.

    jsonargparse reports every type it tried, and prints all values around the error.

    Args:
        message: Message of jsonargparse, possibly wrapping others.

    Returns:
        The explanation, or the message itself if it is not recognised.
    """
    place = ".".join(re.findall(r'^\s*(?:- )?Parser key "([\w.]+)":', message, re.MULTILINE))
    if unknown := re.search(r"unknown option --(.*)", message):
        inside = f"--{place}." if place else "--"
        return f"unknown option {inside}{unknown[1].replace('--', inside)}"
    if unknown := re.search(r"Option '(\w+)' is not accepted", message):
        return f"{place}: unknown option {unknown[1]!r}{_near(unknown[1], _options_of(place))}"
    if unknown := re.search(r"import path string: (\w+)|given class_path '[\w.]*?(\w+)':", message):
        return _unknown_class(place, unknown[1] or unknown[2])
    if missing := re.search(r"arguments are required: (.*)", message):
        # Without a place, the first word of each is the command.
        names = [f"{place}.{n}" if place else n.split(".", 1)[-1] for n in missing[1].split(", ")]
        return f"missing: --{', --'.join(names)}"
    value = re.search(r"Got value: (.*)", message) or re.search(r"Given value: (.*)", message)
    kinds = re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", message, re.MULTILINE)
    if value and (wanted := [_type(kind) for kind in kinds if "NoneType" not in kind]):
        return f"{place}={value[1]}: give {' or '.join(dict.fromkeys(wanted))}"
    return message


def _near(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a "did you mean" question if a known name is similar; otherwise an empty text."""
    near = difflib.get_close_matches(name, [*known], 1, 0.6)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _type(expected: str) -> str:
    """Return a type in words."""
    choices = re.search(r"Literal\[(.*)\]", expected)
    name = re.sub(r"<class '(.*)'>", r"\1", expected)
    return f"one of {choices[1]}" if choices else TYPES.get(name, name)


def _classes(place: str) -> dict[str, type[Any]]:
    """Return the concrete classes that an option takes, by name."""
    module, _, name = KINDS.get(place.rpartition(".")[2], "").rpartition(".")
    if not module:
        return {}
    importlib.import_module(f"{'.'.join(module.split('.')[:2])}")
    return concrete(getattr(importlib.import_module(module), name))


def _options_of(place: str) -> set[str]:
    """Return the options of all classes that an option takes."""
    return {o for c in _classes(place).values() for o in inspect.signature(c).parameters}


def _unknown_class(place: str, name: str) -> str:
    """Return the message for a class that is unknown or belongs to another option."""
    from lightning_merge.methods.base import Transform, registered
    from lightning_merge.methods.network import NetworkMethod

    what = place.rpartition(".")[2].removesuffix("s") or "class"
    if what == "method" and name in registered(Transform):  # type: ignore[type-abstract]
        return (
            f"method {name!r} is a transform: give a method, and "
            f"--method.transforms '[{{class_path: {name}}}]'"
        )
    if what == "method" and name in registered(NetworkMethod):  # type: ignore[type-abstract]
        return (
            f"method {name!r} returns a network that one set of weights cannot stand for: put it "
            "into a run's trainer.callbacks, {class_path: lightning_merge.callbacks.MergeCallback, "
            f"init_args: {{method: {{class_path: {name}}}}}}}, or call {name}()(base, experts, "
            "model=...) in Python"
        )
    known = [own for own, kind in _classes(place).items() if _is_for_users(kind)]
    near = _near(name, known) or ";" * bool(known)
    available = f" Available: {', '.join(known)}" if known else ""
    return f"{place}: unknown {what} {name!r}{near}{available}"


def _is_for_users(kind: type[Any]) -> bool:
    """Whether a class is public, concrete, and defined by this package or the user."""
    if any(getattr(value, "__isabstractmethod__", False) for value in vars(kind).values()):
        return False
    brought = kind.__module__.startswith(("lightning.", "jsonargparse."))
    return not brought and not kind.__name__.startswith("_")


def plain(value: Any) -> Any:
    """Return a config value as dicts, lists and scalars."""
    if isinstance(value, Namespace):
        return {k: plain(v) for k, v in value.as_dict().items()}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value
