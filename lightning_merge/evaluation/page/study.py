"""Runs with what follows from them: the one thing that all parts of a page read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lightning_merge.core.errors import InputError
from lightning_merge.evaluation.aggregates import Aggregate, CandidateAggregate, Spread, aggregate
from lightning_merge.evaluation.bootstrap import Interval
from lightning_merge.evaluation.derived import H_SCORE
from lightning_merge.evaluation.evidence import Evidence, obstacle, weigh
from lightning_merge.evaluation.page.leaks import Leak
from lightning_merge.evaluation.page.runs import Run
from lightning_merge.evaluation.results import AVERAGE


@dataclass(frozen=True)
class Study:
    """Runs of one configuration, aggregated, with every pair of rows compared.

    Attributes:
        runs: One or more, of different seeds.
        table: Their aggregate.
        evidence: Intervals, the best rows, and all differences of pairs.
        against: Row that the page compares with at first.
        leaked: Leaks that were allowed.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> Study.of([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))]).best.name
        'ties'
    """

    runs: Sequence[Run]
    table: Aggregate
    evidence: Evidence
    against: str
    leaked: Sequence[Leak] = ()

    @classmethod
    def of(
        cls, runs: Sequence[Run], against: str | None = None, leaked: Sequence[Leak] = ()
    ) -> "Study":
        """Aggregate runs, and compare all pairs of rows.

        Args:
            runs: One or more, of different seeds.
            against: Row to compare with at first; by default the best merged one.
            leaked: Leaks that were allowed.

        Raises:
            InputError: The runs are not comparable, or against is not a candidate.
        """
        results = [run.results for run in runs]
        table = aggregate(results)
        if against is not None and against not in table.candidates:
            raise InputError(
                f"against={against!r} is not a candidate: give one of {[*table.candidates]}"
            )
        right = [run.right for run in runs]
        if why_not := obstacle(results, right):
            rows = table.candidates.values()
            known = {row.name: row.intervals for row in rows}, {row.name: row.best for row in rows}
            evidence = Evidence(*known, {})
            if not any(known[0].values()):
                table = replace(table, notes=(*table.notes, why_not))
        else:
            evidence = weigh(results, [found for found in right if found], [*table.candidates])
            table = replace(table, candidates={
                name: replace(row, intervals=evidence.intervals[name], best=evidence.best[name])
                for name, row in table.candidates.items()
            })  # fmt: skip
        return cls(runs, table, evidence, against or _best(table).name, leaked)

    @cached_property
    def best(self) -> CandidateAggregate:
        """The merged network of the highest average; of references, if nothing was merged."""
        return _best(self.table)

    @property
    def names(self) -> list[str]:
        """Names of the rows."""
        return [*self.table.candidates]

    @property
    def compared(self) -> list[str]:
        """Columns in which pairs of rows are compared."""
        row = self.table.candidates[self.names[0]]
        return [*row.averages, *(column for column in row.figures if column == H_SCORE)]

    @cached_property
    def leaky(self) -> set[str]:
        """Rows that leaks go into."""
        return {row for leak in self.leaked for row in leak.rows}

    def interval(self, name: str, column: str) -> Interval | None:
        """Return the interval of a cell, if it is known."""
        return self.evidence.intervals.get(name, {}).get(column)

    def is_best(self, name: str, column: str) -> bool:
        """Whether a row cannot be told from the best merged one of a column."""
        return column in self.evidence.best.get(name, ())

    def value(self, name: str, column: str) -> Spread | None:
        """Return a cell."""
        row = self.table.candidates[name]
        return {**row.accuracy, **row.averages, **row.figures}.get(column)

    def difference(self, name: str, other: str, column: str) -> float | None:
        """Return how much higher the mean of a row is than that of another."""
        one, two = self.value(name, column), self.value(other, column)
        return None if one is None or two is None else one.mean - two.mean


def _best(table: Aggregate) -> CandidateAggregate:
    rows = [*table.candidates.values()]
    merged = [row for row in rows if not (row.bound or row.transductive)]
    return max(merged or rows, key=lambda row: row.averages[AVERAGE].mean)
