"""The benchmark command: a grid of runs, its table, and a file with a line for each number."""

import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning_merge.cli.usage import program
from lightning_merge.core.checkpoints.files import write_text
from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.checks import require_in
from lightning_merge.core.errors import InputError
from lightning_merge.evaluation import grid_tables
from lightning_merge.evaluation.page import Run
from lightning_merge.runs.cells import Work, run_here, run_on_cluster
from lightning_merge.runs.grid import (
    STARTS,
    Cell,
    Variant,
    check_rows,
    of_methods,
    read_group,
    variants_of,
)
from lightning_merge.runs.suite import Suite


def benchmark(
    suites: dict[str, dict[str, Any]],
    folder: str = "runs/benchmark",
    rows: dict[str, dict[str, Any]] | None = None,
    methods: dict[str, dict[str, Any]] | None = None,
    transforms: dict[str, list[Any]] | None = None,
    groups: list[str] | None = None,
    lwptv: bool = False,
    seeds: list[int] | None = None,
    own_experts: bool = False,
    data_root: str | None = None,
    options: dict[str, Any] | None = None,
    jobs: int = 1,
    cluster: str | None = None,
    against: str | None = None,
    columns: Literal["all", "averages"] = "all",
) -> None:
    """Run a grid of suites, rows and seeds, and write one table for each suite.

    A cell is one `fit` in a process of its own, whose folder FOLDER/SUITE/ROW-seedN says what it
    depends on: the same command goes on with cells that are missing or not finished, and does
    nothing in the others but check them. A cell that fails stands below the table with its reason,
    and the others go on. The folder also receives results.csv, a line for each suite, row, seed and
    task (with pyarrow, results.parquet, too), and results.md. Rows that were measured on other
    tasks, examples or experts have tables of their own.

    Args:
        suites: Name -> configs of `fit` with one set of data: `folder`, such as configs/imagenet,
            and, if they differ from the defaults, `config` (sml), `over` and `options`.
        folder: Folder of the grid.
        rows: Row that is learned -> what is laid over the suite's config; `over` names another of
            its configs, and `longer` multiplies the epochs.
        methods: Row -> a merge method: `method`, and `grid` of values to choose from on held-out
            examples.
        transforms: End of a name -> transforms; every method also has a row behind them.
        groups: Configs with a section `variants`, as those in configs/claims, each of which adds
            its rows.
        lwptv: Add a row behind LwPTV's mask for everything that is learned.
        seeds: Seeds of the runs; 0, 1 and 2 by default.
        own_experts: Fine-tune experts for every seed, in the folder of the config's experts with
            the seed behind its name; otherwise all seeds merge the same ones.
        data_root: The option data.root of all runs.
        options: Options of `fit` for all runs, such as {data.eval_batch_size: 64}, which replace
            those of the suites.
        jobs: Cells at a time.
        cluster: Address of a dask.distributed scheduler whose workers run the cells, as in
            tcp://host:8786; they must share this folder.
        against: Row from which the differences of all others are taken.
        columns: Whether single tasks have columns in results.md, or averages alone.

    Raises:
        InputError: There is no suite, row or seed, a row is made twice, or a config does not exist.
    """
    require_in("[1, inf)", jobs=jobs)
    seeds = [0, 1, 2] if seeds is None else seeds
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds={seeds}: give one or more, and none twice")
    if not suites:
        raise InputError("suites is empty: give at least one, as in suites.mini.folder")
    chosen = _variants(rows or {}, methods or {}, transforms or {}, groups or [], lwptv)
    known = check_rows(chosen)
    if against is not None and against not in known:
        raise InputError(f"against={against!r} is no row; give one of {enumerate_names(known)}")
    root = {} if data_root is None else {"data.root": data_root}
    given = {name: Suite.of(name, own) for name, own in suites.items()}
    over = {
        name: replace(suite, options={**suite.options, **root, **(options or {})})
        for name, suite in given.items()
    }
    cells = [
        Cell(name, variant, seed, Path(folder) / name / f"{variant.name}-seed{seed}")
        for name in suites
        for seed in seeds
        for variant in chosen
    ]
    failed = _run(cells, over, own_experts, jobs, cluster)
    _write(Path(folder), cells, failed, against, columns)


def _variants(
    rows: Mapping[str, dict[str, Any]],
    methods: Mapping[str, dict[str, Any]],
    transforms: Mapping[str, list[Any]],
    groups: Sequence[str],
    lwptv: bool,
) -> list[Variant]:
    """Return what every suite runs with every seed."""
    found = [*variants_of(rows), *of_methods(methods, transforms)]
    named: list[Variant] = []
    for group in groups:  # a variant may be in several, as it is
        named += [v for v in read_group(Path(group)) if v not in named]
    found += named
    learned = [v for v in found if v.learned == v.name] if lwptv else []
    return [*found, *(v.behind_lwptv() for v in learned)]


def _run(
    cells: Sequence[Cell],
    suites: Mapping[str, Suite],
    own_experts: bool,
    jobs: int,
    cluster: str | None,
) -> dict[Path, str]:
    """Run all cells; return why some failed, by folder."""
    todo = [
        Work(
            str(cell.folder),
            str(cell.log),
            tuple(cell.arguments(suites[cell.suite], own_experts)),
        )
        for cell in cells
    ]
    configs = {cell.config: cell.variant.overlay(suites[cell.suite]) for cell in cells}
    for file, config in configs.items():  # bad input has shown by now
        write_text(file, json.dumps(config))  # JSON is YAML
    ended = run_here(todo, jobs) if cluster is None else run_on_cluster(todo, cluster)
    failed, begun = {}, time.perf_counter()
    for number, (work, reason) in enumerate(ended, 1):
        if reason:
            failed[Path(work.folder)] = reason
        spent = time.perf_counter() - begun
        what = f"failed: {reason}; see {work.log}" if reason else "done"
        print(f"[{number}/{len(todo)}, {spent:.0f} s] {work.folder}: {what}", flush=True)
    return failed


def _write(
    folder: Path,
    cells: Sequence[Cell],
    failed: Mapping[Path, str],
    against: str | None,
    columns: Literal["all", "averages"],
) -> None:
    """Write results.csv, results.parquet if possible, and results.md."""
    if len(failed) == len(cells):
        first = cells[0]
        raise InputError(f"every cell failed; {first.folder}: {failed[first.folder]}")
    runs = {cell.folder: Run.read(cell.folder) for cell in cells if cell.folder not in failed}
    files = grid_tables.write([*_lines(cells, runs, failed)], folder)
    command = shlex.join([*program().split(), "benchmark", *sys.argv[2:]])
    sections = []
    for suite in dict.fromkeys(cell.suite for cell in cells):
        own = [cell for cell in cells if cell.suite == suite]
        sections.append(f"## {suite}\n\n{_section(own, runs, failed, command, against, columns)}")
    write_text(folder / "results.md", "\n".join(sections))
    print(", ".join(str(file) for file in [*files, folder / "results.md"]))


def _lines(
    cells: Sequence[Cell], runs: Mapping[Path, Run], failed: Mapping[Path, str]
) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of results.csv; those of equal references once per suite and seed."""
    known = set()
    for cell in cells:
        if cell.folder in failed:
            for row in cell.variant.rows:
                reason = failed[cell.folder]
                yield {"suite": cell.suite, "row": row, "seed": cell.seed, "failed": reason}
            continue
        run = runs[cell.folder]
        correct, kind = grid_tables.correct_file(cell.folder), grid_tables.kind(run)
        for row in run.results.candidates:
            place = (cell.suite, row, cell.seed, kind)
            if row not in STARTS and place not in known:
                known.add(place)
                yield from grid_tables.lines(cell.suite, row, cell.seed, run.results, correct)


def _section(
    cells: Sequence[Cell],
    runs: Mapping[Path, Run],
    failed: Mapping[Path, str],
    command: str,
    against: str | None,
    columns: Literal["all", "averages"],
) -> str:
    """Return the tables of a suite, and below them what failed."""
    lacking = {cell.variant.name for cell in cells if cell.folder in failed}
    tables: dict[Any, dict[str, list[Run]]] = {}
    for variant in dict.fromkeys(cell.variant.name for cell in cells):
        if variant in lacking:
            continue
        own = [runs[cell.folder] for cell in cells if cell.variant.name == variant]
        rows = tables.setdefault(tuple(map(grid_tables.kind, own)), {})
        for name, row in own[0].results.candidates.items():
            if not row.bound and name not in STARTS:
                rows[name] = own
    parts = [
        grid_tables.table(rows, command, against if against in rows else None, columns)
        for rows in tables.values()
        if rows
    ]
    told = [
        f"- {enumerate_names(cell.variant.rows)}, seed {cell.seed}, failed: {failed[cell.folder]}"
        for cell in cells
        if cell.folder in failed
    ]
    below = ["\n".join(["", *told, ""])] if told else []
    return "\n".join([*(parts or ["Every row lacks a seed.\n"]), *below])
