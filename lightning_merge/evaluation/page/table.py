"""The table of a page: columns, cells, and the differences between its rows."""

from collections.abc import Iterator, Mapping, Sequence
from math import log10
from typing import Any, NamedTuple

from lightning_merge.evaluation.aggregates import CandidateAggregate, Spread
from lightning_merge.evaluation.bootstrap import Interval
from lightning_merge.evaluation.candidates import EXPERTS
from lightning_merge.evaluation.cells import short
from lightning_merge.evaluation.derived import DISTANCE, DISTANCE_OUT, EXPLAINED, EXPLAINED_BESIDE
from lightning_merge.evaluation.page.seen import badges
from lightning_merge.evaluation.page.study import Study
from lightning_merge.evaluation.results import AVERAGE

COSTS = {
    "seconds": "Wall-clock time of making the network, in seconds.",
    "peak MiB": "Memory that making it took, beyond what the process or its device held before.",
    "extra parameters": "Numbers stored beside those of one network; 32 bits of masks are one.",
    "passes": "What an example takes, in passes of the base network.",
    "update MiB": "Size of the values that differ from the base's, without their positions.",
}
"""Column -> what it says."""


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        key: Its name.
        label: Its heading.
        about: A sentence about it.
        kind: "average", "figure", "task" or "cost".
        compared: Whether a column of differences stands beside it.

    Examples:
        >>> Column("average", "average", "Mean over tasks.", "average").compared
        False
    """

    key: str
    label: str
    about: str
    kind: str
    compared: bool = False


class Cell(NamedTuple):
    """A cell.

    Attributes:
        value: What rows are sorted by; None sorts last.
        text: What it says.
        interval: Its 95 % interval.
        delta: Difference from the task's expert.
        best: Whether it cannot be told from the best merged one of its column.
        heat: Place in the range of the column, from 0 to 1; None for no colour.

    Examples:
        >>> Cell(98.0, "98.0").heat is None
        True
    """

    value: float | None
    text: str
    interval: str = ""
    delta: str = ""
    best: bool = False
    heat: float | None = None


def columns(study: Study) -> list[Column]:
    """Return the columns of a study.

    Args:
        study: The runs.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> from lightning_merge.evaluation.page.runs import Run
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> found = Study.of([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))])
        >>> [column.key for column in columns(found)]
        ['average', 'mnist', 'seconds', 'passes']
    """
    table, row = study.table, study.table.candidates[study.names[0]]
    found = [
        Column(key, key, _about_average(key, study), "average", key in study.compared)
        for key in row.averages
    ]
    found += [
        Column(key, key, _about_figure(key), "figure", key in study.compared) for key in row.figures
    ]
    for task in table.tasks:
        marks = {
            "unseen": table.unseen, "out of domain": table.out_of_domain,
            "own split": table.own_split,
        }  # fmt: skip
        kinds = [mark for mark, tasks in marks.items() if task in tasks]
        few, many = row.samples[task]
        count = str(few) if few == many else f"{few} to {many}"
        about = ", ".join([f"Accuracy on {task}: {count} test examples", *kinds])
        found.append(Column(task, task, f"{about}.", "task"))
    used = [key for key in COSTS if any(_cost(r, key) for r in table.candidates.values())]
    return [*found, *(Column(key, key, COSTS[key], "cost") for key in used)]


def _about_average(key: str, study: Study) -> str:
    tasks = study.table.out_of_domain if "out of domain" in key else study.table.tasks
    inside = [t for t in tasks if key != AVERAGE or t not in study.table.out_of_domain]
    which = f"{len(inside)} data sets" if key == AVERAGE or "out of domain" in key else "its tasks"
    return f"Mean accuracy over {which}, each counting alike."


def _about_figure(key: str) -> str:
    ends = (text for name, text in EXPLAINED_BESIDE.items() if key.endswith(f" {name}"))
    return EXPLAINED[key][0] if key in EXPLAINED else next(ends, key)


def rows(study: Study, shown: Sequence[Column]) -> list[dict[str, Any]]:
    """Return the rows of a table, the highest average first.

    Args:
        study: The runs.
        shown: Its columns.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> from lightning_merge.evaluation.page.runs import Run
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> found = Study.of([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))])
        >>> [cell.text for cell in rows(found, columns(found))[0]["cells"]]
        ['98.0', '98.0', '3.2', '1.00']
    """
    heats = {column.key: _heats(study, column) for column in shown}
    order = sorted(study.names, key=lambda name: -study.table.candidates[name].average.mean)
    return [
        {
            "name": name,
            "index": study.names.index(name),
            "reference": row.bound,
            "leak": name in study.leaky,
            "best": name == study.best.name,
            "tied": study.is_best(name, AVERAGE),
            "badges": badges(row),
            "note": row.note,
            "cells": [_cell(study, row, column, heats[column.key].get(name)) for column in shown],
        }
        for name, row in ((name, study.table.candidates[name]) for name in order)
    ]


def _heats(study: Study, column: Column) -> dict[str, float]:
    """Return each row's place in the range of a column; of costs, the lowest has 1."""
    found = {name: _sortable(study, name, column) for name in study.names}
    known = {name: value for name, value in found.items() if value is not None}
    if column.kind == "cost":
        known = {n: -log10(v + 1e-3) for n, v in known.items() if v > 0}
    if column.key in (DISTANCE, DISTANCE_OUT) or not known:
        return {}
    low, high = min(known.values()), max(known.values())
    return {n: (v - low) / (high - low) for n, v in known.items()} if high > low else {}


def _sortable(study: Study, name: str, column: Column) -> float | None:
    if column.kind == "cost":
        return _cost(study.table.candidates[name], column.key)
    found = study.value(name, column.key)
    return None if found is None else found.mean


def _cell(study: Study, row: CandidateAggregate, column: Column, heat: float | None) -> Cell:
    value = _sortable(study, row.name, column)
    if value is None:
        return Cell(None, "")
    if column.kind == "cost":
        return Cell(value, _cost_text(row, column.key), heat=heat)
    spread = study.value(row.name, column.key)
    if column.key in (DISTANCE, DISTANCE_OUT):
        return Cell(value, f"{value:.3g}")
    return Cell(
        100 * value,
        percent(spread),
        ends(study.interval(row.name, column.key)),
        _above_expert(study, row, column),
        study.is_best(row.name, column.key),
        heat,
    )


def _above_expert(study: Study, row: CandidateAggregate, column: Column) -> str:
    alone = column.kind != "task" or row.name == EXPERTS or EXPERTS not in study.names
    if alone or column.key in study.table.out_of_domain:
        return ""
    found = study.difference(row.name, EXPERTS, column.key)
    return "" if found is None else signed(100 * found)


def percent(value: Spread | None) -> str:
    """Return a mean and its deviation in percent.

    Examples:
        >>> percent(Spread(0.6214, 0.004)), percent(None)
        ('62.1 ± 0.4', '')
    """
    if value is None:
        return ""
    return f"{100 * value.mean:.1f}" + (
        f" ± {100 * value.std:.1f}" if value.std is not None else ""
    )


def ends(interval: Interval | None, sign: bool = False) -> str:
    """Return an interval in percent.

    Examples:
        >>> ends(Interval(-0.0121, 0.0532), sign=True)
        '[−1.2, +5.3]'
    """
    if interval is None:
        return ""
    low, high = (signed(100 * end) if sign else f"{100 * end:.1f}" for end in interval)
    return f"[{low}, {high}]"


def signed(value: float) -> str:
    """Return a number with its sign and one decimal; zero has a plus.

    Examples:
        >>> signed(-1.25), signed(-0.01)
        ('−1.2', '+0.0')
    """
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", "\u2212")


def _cost(row: CandidateAggregate, key: str) -> float | None:
    if row.bound:
        return None
    memory, update = row.peak_memory, row.update_bytes
    return {
        "seconds": row.seconds.mean,
        "peak MiB": None if memory is None else memory.mean / 2**20,
        "extra parameters": float(row.extra_parameters),
        "passes": row.inference_cost,
        "update MiB": None if update is None else update.mean / 2**20,
    }[key]


def _cost_text(row: CandidateAggregate, key: str) -> str:
    value = _cost(row, key) or 0.0
    if key == "extra parameters":
        return short(int(value))
    return f"{value:.2f}" if key == "passes" else f"{value:,.1f}"


def pairs(study: Study) -> Iterator[list[list[list[float | None]] | None]]:
    """Yield, for every row as the reference, what the others have beyond it.

    A row's entry is None for the reference itself; else, by compared column, the difference and
    the ends of its interval in percentage points, its p value, and 1 for better, -1 for worse or
    0. What is not known is left out.

    Args:
        study: The runs.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> from lightning_merge.evaluation.page.runs import Run
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> found = Study.of([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))])
        >>> [*pairs(found)]
        [[None]]
    """
    for other in study.names:
        compared = study.evidence.compared.get(other, {})
        yield [
            None
            if name == other
            else [
                _difference(study, name, other, column, compared.get(name, {}))
                for column in study.compared
            ]
            for name in study.names
        ]


def _difference(
    study: Study, name: str, other: str, column: str, compared: Mapping[str, Any]
) -> list[float | None]:
    found = study.difference(name, other, column)
    if found is None:
        return []
    points: list[float | None] = [round(100 * found, 4)]
    if column not in compared:
        return points
    (low, high), p = compared[column]
    verdict = {"better": 1, "worse": -1, "": 0}[compared[column].verdict]
    return [*points, round(100 * low, 4), round(100 * high, 4), float(f"{p:.2g}"), verdict]
