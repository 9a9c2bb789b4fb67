"""`COMMAND --help`, from the signature and docstring of the command's function or class.

jsonargparse uses the same, but has to import every type in the signature; this reads the source.
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
"""Name, type and default of a parameter."""
_ROOM = 40  # characters of choices beside an option's name; longer ones stand in its description


class Option(NamedTuple):
    """An option of a command.

    Attributes:
        name: Name without dashes.
        kind: Type as written in the source, without `| None` and with aliases resolved.
        default: Default as written in the source; None if the option is required.
        about: Description from the docstring.
        choices: Allowed values or class names; empty if the values are open or there is only one
            class.
        of_class: Whether it takes a class of this package, by name.
    """

    name: str
    kind: str
    default: str | None
    about: str
    choices: tuple[str, ...]
    of_class: bool


def parser_of(command: str, program: str) -> ArgumentParser:
    """Return a parser that prints the help of a command.

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
    """Yield the options for the parameters of a function or class.

    A dataclass is replaced by its fields, prefixed with its name. Parameters passed on to another
    function as `**options` are looked up there.
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
    """Return the parameters, and the name of `**options` if there is one."""
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
    """Return the function called with `**rest`, and the keywords that the call passes itself."""
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
    """Return a type as in the source, without `| None`, and its class if this package has it."""
    if isinstance(annotation, ast.Constant):  # a forward reference
        text = str(annotation.value)
    else:
        text = ast.unparse(annotation)
    text = text.replace(" | None", "")
    found = find(module, text)
    if found is not None and isinstance(found.node, ast.Assign):
        return _resolved(found.module, found.node.value)
    return text, found


def _is_plain(definition: Definition) -> bool:
    """Whether a class is a dataclass with no alternatives to choose from."""
    node = definition.node
    return isinstance(node, ast.ClassDef) and bool(node.decorator_list) and not node.bases


def _choices(kind: str) -> tuple[str, ...]:
    """Return the values of a Literal or a bool; empty for other types."""
    if kind.startswith("Literal["):
        return tuple(re.findall(r"'(\w+)'", kind))
    return ("true", "false") if kind == "bool" else ()


def _classes(definition: Definition) -> tuple[str, ...]:
    """Return the names of the concrete subclasses of a class in its package."""
    assert isinstance(definition.node, ast.ClassDef)
    return tuple(kinds_of(definition.module.rpartition(".")[0], definition.node.name))


def _text(default: ast.expr | None) -> str | None:
    return None if default is None else ast.unparse(default)


def _add(parser: ArgumentParser, option: Option) -> None:
    """Add an option; one that takes a class also gets `--NAME.help` to show the class's options."""
    names, about = [f"--{option.name}"], option.about
    if option.kind.startswith(("list", "Sequence")):
        names.append(f"--{option.name}+")  # appends to the list of a config
    if option.choices and "," not in _metavar(option):
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
    """Return the usage wrapped to the terminal's width, with breaks only between parts."""
    text = " ".join(part.replace(" ", "\xa0") for part in parts)
    room = shutil.get_terminal_size().columns - len("usage: ") - 2
    return textwrap.fill(text, room, subsequent_indent=" " * 7).replace("\xa0", " ")


def _metavar(option: Option) -> str:
    """Return the placeholder for the value of an option."""
    if option.of_class:
        return "CLASS"
    shown = f"{{{','.join(option.choices)}}}"
    if option.choices and len(shown) <= _ROOM:
        return shown
    return option.name.rpartition(".")[2].upper()


def _facts(option: Option) -> Iterator[str]:
    """Yield that an option is required, its type and its default, as far as they apply."""
    if option.default is None:
        yield "required"
    if not option.choices and not option.of_class:
        yield f"type: {option.kind}"
    if option.default not in (None, "None", "()"):
        default = ast.literal_eval(option.default)
        yield f"default: {str(default).lower() if isinstance(default, bool) else default}"
