"""The list command: what there is, one line each."""

import inspect
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from lightning_merge.data.tasks import TASKS
from lightning_merge.methods.base import MergeMethod, Transform, registered
from lightning_merge.models import encoders


def show(what: Literal["all", "methods", "transforms", "tasks", "encoders"] = "all") -> None:
    """Show methods, transforms, tasks and encoders, one line each.

    Args:
        what: all, methods, transforms, tasks or encoders.
    """
    tables = {
        "methods": _registered("methods", registered(MergeMethod)),  # type: ignore[type-abstract]
        "transforms": _registered("transforms", registered(Transform)),  # type: ignore[type-abstract]
        "tasks": _table("tasks", {name: (spec.summary,) for name, spec in TASKS.items()}),
        "encoders": _table("encoders", {name: (line,) for name, line in encoders().items()}),
    }
    console = Console()
    for table in tables.values() if what == "all" else [tables[what]]:
        console.print(table)


def _registered(title: str, kinds: dict[str, Any]) -> Table:
    rows: dict[str, tuple[str, ...]] = {
        name: (inspect.getdoc(kind).partition("\n")[0], kind.needs, kind.reference)  # type: ignore[union-attr]
        for name, kind in kinds.items()
    }
    return _table(title, rows, "what", "needs", "reference")


def _table(title: str, rows: dict[str, tuple[str, ...]], *columns: str) -> Table:
    table = Table("name", *(columns or ("what",)), title=title, title_justify="left", box=None)
    for name, cells in sorted(rows.items()):
        table.add_row(name, *cells)
    return table
