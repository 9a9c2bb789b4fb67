"""Tables of many runs: rows of several runs as one table, and a row per run and task."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_merge.core.checkpoints.files import atomic_write, write_text
from lightning_merge.evaluation.aggregates import aggregate
from lightning_merge.evaluation.correctness import FILE, Correctness
from lightning_merge.evaluation.page import Run
from lightning_merge.evaluation.results import Results
from lightning_merge.evaluation.tables import markdown

COLUMNS = (
    *("suite", "row", "seed", "reference", "task", "domain", "accuracy", "samples", "seconds"),
    *("peak_memory", "extra_parameters", "inference_cost", "update_bytes", "transductive"),
    *("note", "correct", "failed"),
)
"""Columns of results.csv: one line per suite, row, seed and task, accuracy as a fraction.

`correct` is the file that says which test examples the row gets right; a run that failed has one
line, with the reason.
"""


def kind(run: Run) -> tuple[Any, ...]:
    """Return what rows of one table have in common: tasks, examples, and the references' accuracy.

    Args:
        run: A run.

    Examples:
        >>> from lightning_merge.evaluation.results import CandidateResult
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> kind(Run("mine", Results(["mnist"], {"ties": ties}, seed=0, versions={})))[0]
        ('mnist',)
    """
    results = run.results
    bounds = {name: row.accuracy for name, row in results.candidates.items() if row.bound}
    known = {name: sorted(accuracy.items()) for name, accuracy in sorted(bounds.items())}
    apart = (tuple(results.unseen), tuple(results.out_of_domain), tuple(results.own_split))
    return (tuple(results.tasks), *apart, results.corruption, str(known))


def joined(rows: Mapping[str, Run]) -> Run:
    """Return rows of several runs as those of one; the first run gives what they share.

    Args:
        rows: Row -> its run.

    Examples:
        >>> from lightning_merge.evaluation.results import CandidateResult
        >>> def run(name: str) -> Run:
        ...     row = CandidateResult(name, {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        ...     return Run(name, Results(["mnist"], {name: row}, seed=0, versions={}))
        >>> [*joined({"ties": run("ties"), "average": run("average")}).results.candidates]
        ['ties', 'average']
    """
    first, *_ = rows.values()
    candidates = {name: run.results.candidates[name] for name, run in rows.items()}
    notes = tuple(dict.fromkeys(note for run in rows.values() for note in run.results.notes))
    results = replace(first.results, candidates=candidates, notes=notes)
    stored = {name: run.right for name, run in rows.items() if run.right is not None}
    digests = [right.digests for right in stored.values()]
    if len(stored) < len(rows) or any(other != digests[0] for other in digests):
        return Run(first.name, results)
    right = {name: right.right[name] for name, right in stored.items()}
    return Run(first.name, results, Correctness(digests[0], right))


def table(
    found: Mapping[str, Sequence[Run]],
    command: str,
    against: str | None = None,
    columns: str = "all",
) -> str:
    """Return one table with the references and all rows, aggregated over the seeds.

    Args:
        found: Row -> its runs, those of all rows with the same seeds in the same order.
        command: Command that made the table.
        against: Row from which the differences of all others are given.
        columns: "all", or "averages" without single tasks.

    Examples:
        >>> from lightning_merge.evaluation.results import CandidateResult
        >>> row = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> run = Run("mine", Results(["mnist"], {"ties": row}, seed=0, versions={}))
        >>> print(table({"ties": [run]}, "benchmark"))
        | candidate | mnist | average |
        | :-- | --: | --: |
        | ties | **98.0** | **98.0** |
        ...
    """
    runs = []
    for of_seed in zip(*found.values(), strict=True):
        first = of_seed[0]
        bounds = {name: first for name, row in first.results.candidates.items() if row.bound}
        runs.append(joined({**bounds, **dict(zip(found, of_seed, strict=True))}))
    results = [replace(run.results, command=command) for run in runs]
    return markdown(aggregate(results, against, [run.right for run in runs]), columns=columns)


def lines(suite: str, row: str, seed: int, results: Results, correct: str) -> Iterator[Any]:
    """Yield a line of results.csv for each task of a row of a run.

    Args:
        suite: Name of the suite.
        row: The row.
        seed: Seed of the run.
        results: The run's.
        correct: Path of its record of right answers.

    Examples:
        >>> from lightning_merge.evaluation.results import CandidateResult
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> results = Results(["mnist"], {"ties": ties}, seed=0, versions={})
        >>> next(lines("mini", "ties", 0, results, ""))["accuracy"]
        0.98
    """
    found = results.candidates[row]
    for task in results.tasks:
        where = "out" if task in results.out_of_domain else "in"
        yield {
            "suite": suite,
            "row": row,
            "seed": seed,
            "reference": found.bound,
            "task": task,
            "domain": "unseen" if task in results.unseen else where,
            "accuracy": found.accuracy[task],
            "samples": found.samples[task],
            "seconds": found.seconds,
            "peak_memory": found.peak_memory,
            "extra_parameters": found.extra_parameters,
            "inference_cost": found.inference_cost,
            "update_bytes": found.update_bytes,
            "transductive": found.transductive,
            "note": found.note,
            "correct": correct,
        }


def write(found: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write results.csv and, if pyarrow is installed, results.parquet; return their paths.

    Args:
        found: Lines, see `lines`; what they lack is empty.
        folder: Where to write.

    Examples:
        >>> write([{"suite": "mini", "row": "ties", "failed": "no file"}], Path())[0].name
        'results.csv'
        >>> Path("results.csv").read_text().splitlines()[1]
        'mini,ties,,,,,,,,,,,,,,,no file'
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    files = [folder / "results.csv"]
    write_text(files[0], text.getvalue())
    parquet_file = folder / "results.parquet"
    try:
        from pyarrow import Table, parquet
    except ImportError:
        parquet_file.unlink(missing_ok=True)  # that of an earlier grid
        return files
    columns = {name: [line.get(name) for line in found] for name in COLUMNS}
    with atomic_write(parquet_file, overwrite=True) as partial:
        parquet.write_table(Table.from_pydict(columns), partial)
    return [*files, parquet_file]


def correct_file(folder: Path) -> str:
    """Return the path of a run's record of right answers.

    Examples:
        >>> correct_file(Path("run"))
        'run/correct.safetensors'
    """
    return str(folder / FILE)
