"""The summary of a finished run in the terminal: table, notes, and how to load the result."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from lightning_merge.cli.companions import how_to_load
from lightning_merge.evaluation.results import Results
from lightning_merge.evaluation.tables import rich_table
from lightning_merge.methods.network import holds_network
from lightning_merge.models.encoder_options import encoder_of_run


def show(results: Results, folder: Path, merged: Path, notes: Iterable[str]) -> None:
    """Print the results of a run, and how to load its merged network.

    Args:
        results: Results of the candidates.
        folder: Run folder.
        merged: File of the network that the run itself has learned or chosen.
        notes: Notes to print below the table, one line each.
    """
    console = Console(markup=False, emoji=False)
    console.print(rich_table(results, width=console.width))
    for note in notes:
        print(note)
    print(f"run folder: {folder}")
    if merged.exists() and not holds_network(merged):  # a single set of weights
        encoder = encoder_of_run(merged)
        library = None if encoder is None else encoder.kind.library
        tower = library == "open_clip"
        hint = ", where CLIP is the network that the tower comes from" if tower else ""
        print(how_to_load(merged, library, "CLIP" if tower else None) + hint)
