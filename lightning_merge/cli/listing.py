"""The list command: what there is, one line each."""

import inspect
import shutil
import textwrap
from typing import Any, Literal

from lightning_merge.data.source import open_source
from lightning_merge.data.tasks import TASKS
from lightning_merge.methods.base import Method, Transform, registered
from lightning_merge.methods.network import NetworkMethod
from lightning_merge.models import encoders


def show(what: Literal["all", "methods", "transforms", "tasks", "encoders"] = "all") -> None:
    """Show methods, transforms, tasks and encoders, one line each.

    Args:
        what: all, methods, transforms, tasks or encoders.
    """
    drawn = open_source("drawn", "").tasks()
    lists = {
        "methods": _registered(registered(Method)),  # type: ignore[type-abstract]
        "transforms": _registered(registered(Transform)),  # type: ignore[type-abstract]
        "tasks": dict.fromkeys(drawn, "made by the package itself: data.source: drawn")
        | {name: spec.summary for name, spec in TASKS.items()},
        "encoders": encoders(),
    }
    for title, lines in lists.items():
        if what in ("all", title):
            print(title)
            width = max(map(len, lines))
            room = shutil.get_terminal_size().columns - width - 4
            for name, line in sorted(lines.items()):
                print(f"  {name:<{width}}  {textwrap.shorten(line, room, placeholder='...')}")


def _registered(kinds: dict[str, Any]) -> dict[str, str]:
    """Return the first sentence of each, what it needs, and if it makes a network."""
    return {
        name: (inspect.getdoc(kind) or "").partition("\n")[0].partition(". ")[0]
        + ("" if kind.needs == "nothing" else f"; needs {kind.needs}")
        + ("; returns a network" if issubclass(kind, NetworkMethod) else "")
        for name, kind in kinds.items()
    }
