"""`COMMAND --help`, from signature and docstring in the source of what the command runs.

jsonargparse reads the same, but imports every type in it first.
"""

import ast
import re
import shutil
import textwrap
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import NamedTuple

from lightning_merge.cli.definitions import Definition, find, kinds_of
from lightning_merge.cli.usage import RUNS

Parameter = tuple[str, ast.expr, str | None]
"""Name, type and default of an argument."""


class Option(NamedTuple):
    """An option of a command.

    Attributes:
        name: Without its dashes.
        kind: Its type as the source has it, without that it may be null; aliases are replaced.
        default: As the source has it; None where the option is required.
        about: What the docstring says.
        choices: Values, or names of classes; empty where it takes others, or only one class.
        of_class: Whether it takes a class of this package, by its name.
    """

    name: str
    kind: str
    default: str | None
    about: str
    choices: tuple[str, ...]
    of_class: bool


def parser_of(command: str, program: str) -> ArgumentParser:
    """Return a parser whose help is that of a command.

    Args:
        command: A key of `RUNS`.
        program: How the user calls the program.
    """
    runs = find(*RUNS[command])
    assert runs is not None
    about = re.split(r"\n\n(?:Args|Raises):", runs.doc)[0].replace("%", "%%")
    options = sorted(options_of(runs), key=lambda option: option.default is not None)
    needed = [f"--{o.name} {_metavar(o)}" for o in options if o.default is None]
    usage = _wrapped([program, command, "[--config FILE]", *needed, "[options]"])
    parser = ArgumentParser(usage=usage.replace("%", "%%"), description=about)
    parser.add_argument("--config", metavar="FILE", help="YAML file of options")
    what = "print the options as YAML and exit"
    parser.add_argument("--print_config", action="store_true", help=what)
    for option in options:
        _add(parser, option)
    return parser


def options_of(definition: Definition, prefix: str = "") -> Iterator[Option]:
    """Yield the options that stand for the arguments of a function or class.

    Those of a dataclass follow in its stead, under its name. What goes on to another function as
    `**options` is looked up there.
    """
    parameters, rest = _parameters(definition)
    for name, annotation, default in parameters:
        kind, found = _resolved(definition.module, annotation)
        if found is not None and _is_plain(found) and "None" not in ast.unparse(annotation):
            yield from options_of(found, f"{prefix}{name}.")
        else:
            about, of_class = definition.described[name], found is not None
            choices = _choices(kind) if found is None else _classes(found)
            yield Option(prefix + name, kind, default, about, choices, of_class)
    if rest is not None:
        called, given = _passed_on(definition, rest)
        known = {*given, *(name for name, _, _ in parameters)}
        yield from (option for option in options_of(called) if option.name not in known)


def _parameters(definition: Definition) -> tuple[list[Parameter], str | None]:
    """Return the arguments, and the name of `**options`."""
    node = definition.node
    if isinstance(node, ast.ClassDef):
        own = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
        if not own:
            fields = [f for f in node.body if isinstance(f, ast.AnnAssign)]
            return [(ast.unparse(f.target), f.annotation, _text(f.value)) for f in fields], None
        node = own[0]
    assert isinstance(node, ast.FunctionDef)
    taken, rest = node.args, node.args.kwarg
    missing = [None] * (len(taken.args) - len(taken.defaults))
    names = [*taken.args, *taken.kwonlyargs]
    defaults = [*missing, *taken.defaults, *taken.kw_defaults]
    parameters = [
        (name.arg, name.annotation, _text(default))
        for name, default in zip(names, defaults, strict=True)
        if name.annotation is not None  # self has none
    ]
    return parameters, None if rest is None else rest.arg


def _passed_on(definition: Definition, rest: str) -> tuple[Definition, set[str | None]]:
    """Return the function that is called with `**rest`, and the arguments that the call gives."""
    for node in ast.walk(definition.node):
        match node:
            case ast.Call(func=ast.Name(id=called), keywords=words) if any(
                word.arg is None and ast.unparse(word.value) == rest for word in words
            ):
                found = find(definition.module, called)
                assert found is not None
                return found, {word.arg for word in words}
    raise LookupError(rest)


def _resolved(module: str, annotation: ast.expr) -> tuple[str, Definition | None]:
    """Return a type without null, as the source has it, and the class if it is one of ours."""
    if isinstance(annotation, ast.Constant):  # a class that is defined further down
        text = str(annotation.value)
    else:
        text = ast.unparse(annotation)
    text = text.replace(" | None", "")
    found = find(module, text)
    if found is not None and isinstance(found.node, ast.Assign):
        return _resolved(found.module, found.node.value)
    return text, found


def _is_plain(definition: Definition) -> bool:
    """Whether a class is a dataclass without others to choose in its stead."""
    node = definition.node
    return isinstance(node, ast.ClassDef) and bool(node.decorator_list) and not node.bases


def _choices(kind: str) -> tuple[str, ...]:
    """Return the values of a Literal, or of a bool."""
    if kind.startswith("Literal["):
        return tuple(re.findall(r"'(\w+)'", kind))
    return ("true", "false") if kind == "bool" else ()


def _classes(definition: Definition) -> tuple[str, ...]:
    """Return the classes of the package that derive from one."""
    assert isinstance(definition.node, ast.ClassDef)
    return tuple(kinds_of(definition.module.rpartition(".")[0], definition.node.name))


def _text(default: ast.expr | None) -> str | None:
    return None if default is None else ast.unparse(default)


def _add(parser: ArgumentParser, option: Option) -> None:
    """Add an option, and for one that takes a class the option that shows what the class takes."""
    names, about = [f"--{option.name}"], option.about
    if option.kind.startswith(("list", "Sequence")):
        names.append(f"--{option.name}+")  # adds to a config's
    if option.of_class and option.choices:
        about += f" One of {', '.join(option.choices)}."
    facts = f" ({', '.join(_facts(option))})" if [*_facts(option)] else ""
    text = (about + facts).replace("%", "%%")
    parser.add_argument(*names, metavar=_metavar(option), help=text)
    shown = f"given as --{option.name}.OPTION"
    if option.of_class and option.choices:
        what = f"show the options of CLASS, {shown}"
        parser.add_argument(f"--{option.name}.help", metavar="CLASS", help=what)
    elif option.of_class:
        what = f"show the options of --{option.name}, {shown}"
        parser.add_argument(f"--{option.name}.help", action="store_true", help=what)


def _wrapped(parts: list[str]) -> str:
    """Return a usage whose lines fit the terminal and break between parts alone."""
    text = " ".join(part.replace(" ", "\xa0") for part in parts)
    room = shutil.get_terminal_size().columns - len("usage: ") - 2
    return textwrap.fill(text, room, subsequent_indent=" " * 7).replace("\xa0", " ")


def _metavar(option: Option) -> str:
    """Return what stands for the value of an option."""
    if option.of_class:
        return "CLASS"
    if option.choices:
        return f"{{{','.join(option.choices)}}}"
    return option.name.rpartition(".")[2].upper()


def _facts(option: Option) -> Iterator[str]:
    """Yield whether an option is required, its type and its default, where they say anything."""
    if option.default is None:
        yield "required"
    if not option.choices and not option.of_class:
        yield f"type: {option.kind}"
    if option.default not in (None, "None", "()"):
        default = ast.literal_eval(option.default)
        yield f"default: {str(default).lower() if isinstance(default, bool) else default}"
