"""The report command: one table of a run, or with the means and spreads of several."""

from pathlib import Path
from typing import Literal

from lightning_merge.core.checkpoints.files import write_text
from lightning_merge.core.errors import InputError
from lightning_merge.evaluation.aggregates import aggregate
from lightning_merge.evaluation.correctness import Correctness
from lightning_merge.evaluation.results import Results
from lightning_merge.evaluation.tables import markdown


def report(
    runs: list[str],
    output: str,
    against: str | None = None,
    intervals: Literal["averages", "all", "none"] = "averages",
    columns: Literal["all", "averages"] = "all",
    overwrite: bool = False,
) -> None:
    """Write the table of a run, or mean and spread over seeds of several runs of one config.

    Args:
        runs: Run folders, or their results.json; several have different seeds.
        output: Markdown file to write.
        against: Candidate to compare with: the table also gives the difference of every other
            candidate's averages from it, paired by run and image, with interval and p value.
        intervals: Columns that show 95 % intervals over images and seeds.
        columns: Whether single tasks have columns, or averages alone.
        overwrite: Replace the output if it exists.

    Raises:
        InputError: A run has no results, the runs are not comparable, against is not a candidate,
            or the output exists.
    """
    target = Path(output)
    if target.exists() and not overwrite:
        raise InputError(f"output={output!r} exists: give another path or --overwrite true")
    files = [Path(run) / "results.json" if Path(run).is_dir() else Path(run) for run in runs]
    for run, file in zip(runs, files, strict=True):
        if not file.exists():
            raise InputError(f"runs: {run!r} has no results: {file} does not exist; finish the run")
    results = [Results.from_json(file) for file in files]
    right = [Correctness.read(file.parent) for file in files]
    kept = against is None and right == [None]  # what a single run has stored with its results
    table = aggregate(results, against, None if kept else right)
    write_text(target, markdown(table, intervals=intervals, columns=columns))
    print(f"{target}: {len(files)} run{'s' if len(files) > 1 else ''}")
