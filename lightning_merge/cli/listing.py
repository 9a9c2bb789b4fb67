"""The list command: what there is, a line or two each, read from the source."""

import shutil
import textwrap
from collections.abc import Callable
from typing import Literal

from lightning_merge.cli.definitions import Definition, keys_of, kinds_of
from lightning_merge.data.tasks import TASKS


def show(what: Literal["all", "methods", "transforms", "tasks", "encoders"] = "all") -> None:
    """Show methods, transforms, tasks and encoders, a line or two each.

    Args:
        what: all, methods, transforms, tasks or encoders.
    """
    lists: dict[str, Callable[[], dict[str, str]]] = {
        "methods": lambda: _with_facts(kinds_of("lightning_merge.methods", "Method")),
        "transforms": lambda: _with_facts(kinds_of("lightning_merge.methods", "Transform")),
        "tasks": _tasks,
        "encoders": _encoders,
    }
    for title, found in lists.items():
        if what in ("all", title):
            lines = found()
            print(title)
            width = max(map(len, lines))
            room = shutil.get_terminal_size().columns - width - 4
            for name, line in sorted(lines.items()):
                first, *details = line.split("\n")
                print(f"  {name:<{width}}  {textwrap.shorten(first, room, placeholder='...')}")
                for part in textwrap.wrap(" ".join(details), room):
                    print(f"  {'':<{width}}  {part}")


def _with_facts(kinds: dict[str, Definition]) -> dict[str, str]:
    """Return the first sentence of each; below it what it needs and costs, and its reference."""
    return {
        name: kind.doc.partition("\n")[0].partition(". ")[0]
        + ("; returns a network" if kind.is_a("NetworkMethod") else "")
        + f"\n{kind.facts.words()}"
        for name, kind in kinds.items()
    }


def _tasks() -> dict[str, str]:
    """Return every known task and where its images come from."""
    drawn = keys_of("lightning_merge.data.drawn", "DRAWN_TASKS")
    return dict.fromkeys(drawn, "made by the package itself: data.source: drawn") | {
        name: spec.summary for name, spec in TASKS.items()
    }


def _encoders() -> dict[str, str]:
    """Return every encoder."""
    kinds = kinds_of("lightning_merge.models", "Encoder")
    return {name: kind.doc.partition("\n")[0] for name, kind in kinds.items()}
