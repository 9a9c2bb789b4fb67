"""The report command: one table with the means and spreads of several runs."""

from pathlib import Path

from lightning_merge.core.checkpoints.files import write_text
from lightning_merge.core.errors import InputError
from lightning_merge.evaluation.aggregates import aggregate
from lightning_merge.evaluation.results import Results
from lightning_merge.evaluation.tables import markdown


def report(
    runs: list[str], output: str, against: str | None = None, overwrite: bool = False
) -> None:
    """Write the mean and spread over seeds of several runs of one config.

    Args:
        runs: Two or more run folders, or their results.json, with different seeds.
        output: Markdown file to write.
        against: Candidate to compare with: the table also gives the difference of every other
            candidate's average from it, taken run by run.
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
    table = markdown(aggregate([Results.from_json(file) for file in files], against))
    write_text(target, table)
    print(f"{target}: {len(files)} runs")
