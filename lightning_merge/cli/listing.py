"""The list command: what there is, a line or two each."""

import inspect
import shutil
import textwrap
from collections.abc import Callable
from typing import Any, Literal

from lightning_merge.methods.base import Method, Transform, registered
from lightning_merge.methods.network import NetworkMethod


def show(what: Literal["all", "methods", "transforms", "tasks", "encoders"] = "all") -> None:
    """Show methods, transforms, tasks and encoders, a line or two each.

    Args:
        what: all, methods, transforms, tasks or encoders.
    """
    lists: dict[str, Callable[[], dict[str, str]]] = {
        "methods": lambda: _registered(registered(Method)),  # type: ignore[type-abstract]
        "transforms": lambda: _registered(registered(Transform)),  # type: ignore[type-abstract]
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


def _registered(kinds: dict[str, Any]) -> dict[str, str]:
    """Return the first sentence of each; below it what it needs and costs, and its reference."""
    return {
        name: (inspect.getdoc(kind) or "").partition("\n")[0].partition(". ")[0]
        + ("; returns a network" if issubclass(kind, NetworkMethod) else "")
        + ("\n" if kind.needs == "nothing" else f"\nneeds {kind.needs}; ")
        + f"costs {kind.cost}; {kind.reference}"
        for name, kind in kinds.items()
    }


def _tasks() -> dict[str, str]:
    """Return every known task and where its images come from."""
    from lightning_merge.data.source import open_source
    from lightning_merge.data.tasks import TASKS

    drawn = open_source("drawn", "").tasks()
    return dict.fromkeys(drawn, "made by the package itself: data.source: drawn") | {
        name: spec.summary for name, spec in TASKS.items()
    }


def _encoders() -> dict[str, str]:
    """Return every known encoder; only who asks for them waits for open_clip, timm and others."""
    from lightning_merge.models import encoders

    return encoders()
