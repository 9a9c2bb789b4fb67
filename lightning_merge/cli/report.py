"""The report command: a page or a table of a run, or of several seeds of one configuration."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lightning_merge.core.checkpoints.files import atomic_write
from lightning_merge.core.errors import InputError
from lightning_merge.evaluation.aggregates import aggregate
from lightning_merge.evaluation.page import Run, check_same_images, page
from lightning_merge.evaluation.page.leaks import leaks, refuse
from lightning_merge.evaluation.tables import markdown

PAGES = (".html", ".htm")


def report(
    runs: list[str],
    output: str,
    against: str | None = None,
    intervals: Literal["averages", "all", "none"] = "averages",
    columns: Literal["all", "averages"] = "all",
    allow_leak: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the page or the table of a run, or of several runs of one config, over their seeds.

    Args:
        runs: Run folders, or their results.json; several have different seeds.
        output: File to write: a page if it ends in .html, else a table in Markdown.
        against: Candidate to compare with: the table also gives the difference of every other
            candidate's averages from it, paired by run and image, with interval and p value. A
            page begins with it, and with the best merged network without it.
        intervals: Columns of a table that show 95 % intervals over images and seeds.
        columns: Whether single tasks have columns of a table, or averages alone.
        allow_leak: Mark rows that were fitted or chosen on examples they are measured on,
            instead of refusing them.
        overwrite: Replace the output if it exists.

    Raises:
        InputError: A run has no results, the runs are not comparable, were measured on other test
            examples or leak, against is not a candidate, or the output exists.
    """
    target = Path(output)
    whole = target.suffix.lower() in PAGES
    if target.exists() and not overwrite:
        raise InputError(f"output={output!r} exists: give another path or --overwrite true")
    if whole and (intervals, columns) != ("averages", "all"):
        raise InputError(
            f"output={output!r} is a page, which shows all intervals and columns: leave out "
            "intervals and columns, or give an output that ends in .md"
        )
    found = [Run.read(run) for run in runs]
    with atomic_write(target) as file:  # which tells at once whether it can be written
        text = (
            page(found, against, allow_leak)
            if whole
            else _table(found, against, intervals, columns, allow_leak)
        )
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
    print(f"{target}: {len(found)} run{'s' if len(found) > 1 else ''}")


def _table(
    runs: Sequence[Run], against: str | None, intervals: str, columns: str, allow_leak: bool
) -> str:
    """Return the table of runs in Markdown."""
    check_same_images(runs)
    refuse(leaked := leaks(runs), allow_leak)
    right = [run.right for run in runs]
    kept = against is None and right == [None]  # what a single run has stored with its results
    table = aggregate([run.results for run in runs], against, None if kept else right)
    told = (f"Leak: {leak.words}; rows {', '.join(leak.rows)}." for leak in leaked)
    table = replace(table, notes=(*table.notes, *told))
    return markdown(table, intervals=intervals, columns=columns)
