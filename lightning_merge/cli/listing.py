"""The list command: methods, transforms, tasks and encoders, read from the source."""

import shutil
import textwrap
from collections.abc import Callable
from typing import Any, Literal

from lightning_merge.cli.definitions import Definition, keys_of, kinds_of
from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Needs
from lightning_merge.data.tasks import GROUPS, TASKS

Sort = Literal["name", "needs", "readings"]
COLUMNS = ("network", "inputs", "heads", "told task", "readings", "returns")
"""Columns of the table of methods, after the name."""
ORDERS: dict[Sort, Callable[[Definition], Any]] = {
    "name": lambda kind: (),
    "needs": lambda kind: (kind.facts.needs.value, kind.facts.told_task),
    "readings": lambda kind: (kind.facts.on_top, kind.facts.readings),
}


def show(
    what: Literal["all", "methods", "transforms", "tasks", "encoders"] = "all",
    sort: Literal["name", "needs", "readings"] = "name",
) -> None:
    """Show methods, transforms, tasks and encoders, with a line or two for each.

    Args:
        what: What to show: all, methods, transforms, tasks or encoders.
        sort: Order of the methods: by name, by what they need besides weights (least first), or
            by how often they read the weights.

    Raises:
        InputError: An order is given for something other than methods.
    """
    if sort != "name" and what not in ("all", "methods"):
        raise InputError(f"sort={sort!r}: {what} are listed by name; leave it out")
    lists: dict[str, Callable[[], dict[str, str]]] = {
        "methods": lambda: _with_facts(_methods(sort)),
        "transforms": lambda: _with_facts(kinds_of("lightning_merge.methods", "Transform")),
        "tasks": lambda: dict(sorted(_tasks().items())),
        "encoders": lambda: dict(sorted(_encoders().items())),
    }
    for title, found in lists.items():
        if what in ("all", title):
            print(title)
            if title == "methods":
                _print_table(needs_of_methods(sort))
            _print_lines(found())


def needs_of_methods(sort: Sort = "name") -> dict[str, tuple[str, ...]]:
    """Return what every method needs, one cell for each of `COLUMNS`, by name in sorted order."""
    return {name: _cells(kind) for name, kind in _methods(sort).items()}


def _methods(sort: Sort) -> dict[str, Definition]:
    """Return all methods, and the modules that learn coefficients, in sorted order."""
    found = kinds_of("lightning_merge.methods", "Method")
    found |= kinds_of("lightning_merge.modules", "CoefficientModule")
    names = sorted(sorted(found), key=lambda name: ORDERS[sort](found[name]))
    return {name: found[name] for name in names}


def _cells(kind: Definition) -> tuple[str, ...]:
    """Return one row of the table."""
    facts = kind.facts
    inputs = {Needs.LABELS: "labelled", Needs.INPUTS_OF_EVERY_TASK: "by task", Needs.INPUTS: "any"}
    return (
        "yes" if Needs.NETWORK in facts.needs else "-",
        next((word for need, word in inputs.items() if need in facts.needs), "-"),
        "yes" if Needs.HEADS in facts.needs else "-",
        "yes" if facts.told_task else "-",
        f"{'+' * facts.on_top}{facts.readings}",
        "network" if kind.is_a("NetworkMethod") else "weights",
    )


def _print_table(rows: dict[str, tuple[str, ...]]) -> None:
    width = max(map(len, rows))
    for name, cells in {"": COLUMNS, **rows}.items():
        wide = (f"{cell:<{len(column)}}" for cell, column in zip(cells, COLUMNS, strict=True))
        print(f"  {name:<{width}}  {'  '.join(wide)}".rstrip())
    print("  +: beside the method within it, whose needs and readings count as well\n")


def _print_lines(lines: dict[str, str]) -> None:
    """Print one line for each name, with the details below it."""
    width = max(map(len, lines))
    room = shutil.get_terminal_size().columns - width - 4
    for name, line in lines.items():
        first, *details = line.split("\n")
        print(f"  {name:<{width}}  {textwrap.shorten(first, room, placeholder='...')}")
        for part in textwrap.wrap(" ".join(details), room):
            print(f"  {'':<{width}}  {part}")


def _with_facts(kinds: dict[str, Definition]) -> dict[str, str]:
    """Return the first sentence of each class's docstring, with its facts on the next line."""
    return {
        name: kind.doc.partition("\n")[0].partition(". ")[0]
        + ("; returns a network" if kind.is_a("NetworkMethod") else "")
        + f"\n{kind.facts.words()}"
        + ("; a model of fit" if kind.is_a("CoefficientModule") else "")
        for name, kind in kinds.items()
    }


def _tasks() -> dict[str, str]:
    """Return every known task and where its data come from, and every group of tasks."""
    drawn = keys_of("lightning_merge.data.drawn", "DRAWN_TASKS")
    groups = {
        name: f"group of {len(tasks)} tasks\n{', '.join(tasks)}" for name, tasks in GROUPS.items()
    }
    own = dict.fromkeys(drawn, "made by the package itself: data.source: drawn")
    return own | {name: spec.summary for name, spec in TASKS.items()} | groups


def _encoders() -> dict[str, str]:
    """Return every encoder and its summary."""
    kinds = kinds_of("lightning_merge.models", "Encoder")
    return {name: kind.doc.partition("\n")[0] for name, kind in kinds.items()}
