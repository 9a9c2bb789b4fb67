"""Columns and cells of a table of candidates by tasks, as text."""

from collections.abc import Mapping, Sequence

from lightning_merge.evaluation.aggregates import Aggregate, CandidateAggregate, Difference, Spread
from lightning_merge.evaluation.bootstrap import Interval
from lightning_merge.evaluation.derived import DISTANCE, DISTANCE_OUT, H_SCORE
from lightning_merge.evaluation.results import AVERAGE

TRANSDUCTIVE = "†"
UNSEEN, OUT_OF_DOMAIN_MARK = "unseen", "out of domain"
OWN_SPLIT = "*"


class Cells:
    """All text of a table, so that markdown and terminal show the same.

    Args:
        results: Runs, aggregated.
        intervals: Columns that have their interval beside them: "averages", "all" or "none".

    Attributes:
        columns: Headings of the tasks, then of the averages.
        rows: Candidate -> its cell in each of these columns.
        best: Pairs of candidate and column to print in bold.
        figures: Heading -> candidate -> cell: figures that follow from accuracies.
        differences: The same for differences from one candidate, if the runs were aggregated
            against it.
        sizes: The same for what using a candidate costs; empty if all are plain networks.
        efforts: The same for the cost of making it; empty if memory was not measured.
        intervals: Whether any cell has an interval.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results, aggregate
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> cells = Cells(aggregate([Results(["mnist"], {"ties": ties}, seed=0, versions={})]))
        >>> cells.columns, cells.rows
        (['mnist', 'average'], {'ties': ['98.0', '98.0']})
    """

    def __init__(self, results: Aggregate, intervals: str = "averages") -> None:
        rows = [*results.candidates.values()]
        averages, figures = [*rows[0].averages], [*rows[0].figures]
        shown = {
            "all": [*results.tasks, *averages, *figures],
            "averages": [*averages, H_SCORE],
            "none": [],
        }[intervals]
        headings = _headings(results)
        self.columns = [*headings.values()]
        self.rows = {r.name: [_cell(r, column, shown) for column in headings] for r in rows}
        self.best = _marked(results, headings) or self._highest(results.candidates)
        self.figures = {c: {r.name: _cell(r, c, shown) for r in rows} for c in figures}
        compared = [*averages, *(column for column in figures if column == H_SCORE)]
        self.intervals = bool(shown) and any(row.intervals for row in rows)
        self.differences = _differences(results, compared, self.intervals)
        self.sizes = _sizes(rows)
        self.efforts = _efforts(rows)

    def _highest(self, candidates: Mapping[str, CandidateAggregate]) -> set[tuple[str, str]]:
        """Return the best of each column, compared as printed."""
        printed = {
            name: [float(cell.split()[0]) for cell in self.rows[name]]
            for name, candidate in candidates.items()
            if not (candidate.bound or candidate.transductive)
        }
        highest = [max(column) for column in zip(*printed.values(), strict=True)]
        return {
            (name, column)
            for name, values in printed.items()
            for column, value, top in zip(self.columns, values, highest, strict=False)
            if value == top
        }


def _headings(results: Aggregate) -> dict[str, str]:
    """Return the heading of each column."""
    tasks = {
        task: task
        + (f" {OWN_SPLIT}" if task in results.own_split else "")
        + (f" ({UNSEEN})" if task in results.unseen else "")
        + (f" ({OUT_OF_DOMAIN_MARK})" if task in results.out_of_domain else "")
        for task in results.tasks
    }
    averages = next(iter(results.candidates.values())).averages
    return tasks | {average: average for average in averages}


def _cell(row: CandidateAggregate, column: str, intervals: Sequence[str]) -> str:
    found = {**row.accuracy, **row.averages, **row.figures}[column]
    if column in (DISTANCE, DISTANCE_OUT):
        return _significant(found)
    return _percent(found) + (_ends(row.intervals.get(column)) if column in intervals else "")


def _marked(results: Aggregate, headings: Mapping[str, str]) -> set[tuple[str, str]]:
    """Return the candidates that cannot be told from the best of a column; none if unknown."""
    rows = results.candidates
    return {(name, headings[column]) for name, row in rows.items() for column in row.best}


def _differences(
    results: Aggregate, columns: Sequence[str], intervals: bool
) -> dict[str, dict[str, str]]:
    """Return cells with each candidate's difference from the reference, and its p value."""
    found: dict[str, dict[str, str]] = {}
    if results.against is None:
        return found
    rows = results.candidates
    for column in columns:
        what = "" if column == AVERAGE else f", {column}"
        given = {name: row.differences.get(column) for name, row in rows.items()}
        found[f"above {results.against}{what}"] = {
            name: _signed(difference, intervals) for name, difference in given.items()
        }
        if any(difference and difference.compared for difference in given.values()):
            found[f"p{what}"] = {name: _p(difference) for name, difference in given.items()}
    return found


def _signed(difference: Difference | None, interval: bool) -> str:
    if difference is None:
        return ""
    known = difference.compared.interval if interval and difference.compared else None
    return _percent(difference.spread, "+") + _ends(known, "+")


def _p(difference: Difference | None) -> str:
    """Return a p value, and what it says if it says anything."""
    if difference is None or difference.compared is None:
        return ""
    _, p = compared = difference.compared
    text = "<0.001" if p < 0.001 else f"{p:.3f}"
    return f"{text}, {compared.verdict}" if compared.verdict else text


def _sizes(rows: Sequence[CandidateAggregate]) -> dict[str, dict[str, str]]:
    """Return cells with the size and inference cost of candidates; empty if all are plain."""
    if not any(row.extra_parameters or row.inference_cost != 1 for row in rows):
        return {}
    return {
        "extra parameters": {r.name: "" if r.bound else short(r.extra_parameters) for r in rows},
        "passes": {r.name: "" if r.bound else f"{r.inference_cost:.2f}" for r in rows},
    }


def _efforts(rows: Sequence[CandidateAggregate]) -> dict[str, dict[str, str]]:
    """Return cells with the cost of making candidates; empty if memory was not measured."""
    if all(row.peak_memory is None for row in rows):
        return {}
    return {
        "seconds": {r.name: "" if r.bound else _text(r.seconds) for r in rows},
        "peak MiB": {
            r.name: "" if r.peak_memory is None else _text(r.peak_memory, 2**-20) for r in rows
        },
        **_storage(rows),
    }


def _storage(rows: Sequence[CandidateAggregate]) -> dict[str, dict[str, str]]:
    """Return cells with the bytes of updates; empty if they were not counted."""
    stored = {row.name: row.update_bytes for row in rows}
    if not any(stored.values()):
        return {}
    return {"update MiB": {name: _text(n, 2**-20) if n else "" for name, n in stored.items()}}


def short(number: int) -> str:
    """Return a number with one decimal and a unit.

    Examples:
        >>> short(1_240_000), short(12)
        ('1.2M', '12')
    """
    for unit, size in {"G": 10**9, "M": 10**6, "k": 10**3}.items():
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _text(value: Spread, scale: float = 1, sign: str = "") -> str:
    spread = "" if value.std is None else f" ± {scale * value.std:.1f}"
    return f"{_rounded(scale * value.mean, sign)}{spread}"


def _percent(value: Spread | None, sign: str = "") -> str:
    return "" if value is None else _text(value, 100, sign)


def _significant(value: Spread | None) -> str:
    """Return a number with three significant digits."""
    if value is None:
        return ""
    return f"{value.mean:.3g}" + ("" if value.std is None else f" ± {value.std:.2g}")


def _ends(interval: Interval | None, sign: str = "") -> str:
    """Return the ends of an interval in percent; "" without one."""
    if interval is None:
        return ""
    low, high = (_rounded(100 * end, sign) for end in interval)
    return f" [{low}, {high}]"


def _rounded(value: float, sign: str) -> str:
    """Return a number with one decimal; zero never has a minus."""
    return f"{round(value, 1) + 0.0:{sign}.1f}"
