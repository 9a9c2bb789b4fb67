"""The end of a run, in the terminal: its table, notes, and how to go on."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from lightning_merge.cli.companions import how_to_load
from lightning_merge.evaluation.results import Results
from lightning_merge.evaluation.tables import rich_table
from lightning_merge.methods.network import holds_network


def show(results: Results, folder: Path, merged: Path, notes: Iterable[str]) -> None:
    """Print what a run has found, and how its merged network is loaded.

    Args:
        results: Of its candidates.
        folder: Of the run.
        merged: File of what the run itself has learned or chosen.
        notes: One line each, below the table.
    """
    console = Console(markup=False, emoji=False)
    console.print(rich_table(results, width=console.width))
    for note in notes:
        print(note)
    print(f"run folder: {folder}")
    if merged.exists() and not holds_network(merged):  # of one set of weights
        print(how_to_load(merged))
