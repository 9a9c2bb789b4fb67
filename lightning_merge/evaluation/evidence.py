"""What the test examples, and seeds, say about the rows of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lightning_merge.evaluation.bootstrap import (
    ZERO,
    Array,
    Interval,
    holm,
    p_of_seeds,
    p_of_signs,
    p_value,
    percentiles,
    resample,
)
from lightning_merge.evaluation.candidates import BASE, EXPERTS
from lightning_merge.evaluation.correctness import FILE, Correctness
from lightning_merge.evaluation.derived import derived
from lightning_merge.evaluation.results import Results, averaged_tasks

ALPHA = 0.05
FEW = 30
"""Test images of a task below which its interval is only rough."""


class Compared(NamedTuple):
    """A paired difference of two candidates.

    Attributes:
        interval: 95 % interval of the difference.
        p: Two-sided p value, the largest of those of the bootstrap, which is below 0.05 only where
            the interval leaves out zero, of a t test over seeds, and of a sign test of all images
            on which the two differ, as if all were for one of them. It is corrected by Holm over
            all other rows of the table, references included, for each column apart.

    Examples:
        >>> Compared(Interval(0.01, 0.03), p=0.002).verdict
        'better'
    """

    interval: Interval
    p: float

    @property
    def verdict(self) -> str:
        """Either "better" or "worse"; "" if it cannot be told."""
        if self.p >= ALPHA:
            return ""
        return "better" if self.interval.low > 0 else "worse"


@dataclass(frozen=True)
class Evidence:
    """Intervals and paired differences of a table.

    Attributes:
        intervals: Candidate -> column (task, average or derived figure) -> 95 % interval.
        best: Candidate -> tasks and averages in which it cannot be told from the best merged one,
            by a p value as in `Compared`, corrected over the column's other merged rows.
        compared: Reference -> other candidate -> column -> difference from the reference.

    Examples:
        >>> Evidence({"ties": {"average": Interval(0.60, 0.63)}}, {"ties": ["average"]}, {}).best
        {'ties': ['average']}
    """

    intervals: Mapping[str, Mapping[str, Interval]]
    best: Mapping[str, Sequence[str]]
    compared: Mapping[str, Mapping[str, Mapping[str, Compared]]]


def obstacle(results: Sequence[Results], correctness: Sequence[Correctness | None]) -> str:
    """Return why runs have no intervals; "" if they can have them.

    Args:
        results: Runs of the same candidates on the same tasks.
        correctness: What each of them answered correctly.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> obstacle([Results(["mnist"], {"ties": ties}, seed=0, versions={})], [None])[:46]
        'No intervals: the run of seed 0 has no correct'
    """
    for run, found in zip(results, correctness, strict=True):
        where = f"No intervals: the run of seed {run.seed}"
        if found is None:
            return f"{where} has no {FILE} beside its results.json; measure it again."
        if not found.fits(run):
            return f"{where} has a {FILE} of other accuracies; measure it again."
        if others := [task for task in run.tasks if not _same_images(found, correctness[0], task)]:
            which = ", ".join(others)
            return (
                f"{where} saw other test examples of {which} than that of seed {results[0].seed}."
            )
    return ""


def _same_images(one: Correctness, other: Correctness | None, task: str) -> bool:
    return other is not None and (one.digests[task], one.images(task)) == (
        other.digests[task],
        other.images(task),
    )


def weigh(
    results: Sequence[Results], correctness: Sequence[Correctness], against: Sequence[str] = ()
) -> Evidence:
    """Return intervals, and which rows of a table differ; `obstacle` says whether it can.

    Args:
        results: Runs of the same candidates on the same tasks, one per seed.
        correctness: What each of them answered correctly.
        against: Candidates from each of which differences are taken.

    Examples:
        >>> import torch
        >>> from lightning_merge.evaluation import CandidateResult
        >>> right = torch.arange(400).reshape(1, -1) % 4 > 0
        >>> ties = CandidateResult("ties", {"pets": 0.75}, {"pets": 400}, seconds=1.0)
        >>> run = Results(["pets"], {"ties": ties}, seed=0, versions={})
        >>> found = weigh([run], [Correctness({"pets": ""}, {"ties": {"pets": right}})])
        >>> [round(end, 2) for end in found.intervals["ties"]["pets"]]
        [0.71, 0.79]
    """
    return _Table(results, correctness).evidence(against)


class _Table:
    """Columns of a table, as observed and resampled."""

    def __init__(self, results: Sequence[Results], correctness: Sequence[Correctness]) -> None:
        self.run = results[0]
        self.names = [*self.run.candidates]
        self.merged = [
            name
            for name in self.names
            if not any(r.candidates[name].bound or r.candidates[name].transductive for r in results)
        ]
        self.averages = averaged_tasks(self.run.tasks, self.run.unseen, self.run.out_of_domain)
        self.cells = {
            task: np.stack([_rows(seed, self.names, task) for seed in correctness])
            for task in self.run.tasks
        }
        self.columns: list[str] = []
        whole = {task: cell.mean(axis=-1) for task, cell in self.cells.items()}
        self.by_seed = self._computed(whole)  # [seeds, rows, columns]
        self.drawn = resample(self.cells, self._computed)
        self._known: dict[tuple[str, ...], float] = {}  # p values

    def _computed(self, accuracy: Mapping[str, Array]) -> Array:
        """Return all columns, [..., rows, columns], of accuracies by task, [..., rows]."""
        averages = {
            name: np.mean([accuracy[task] for task in tasks], axis=0)
            for name, tasks in self.averages.items()
        }
        rows = {"": accuracy} | {
            name: {task: a[..., [self.names.index(name)]] for task, a in accuracy.items()}
            for name in (BASE, EXPERTS)
            if name in self.names
        }
        figures = derived(rows, "", self.run.in_domain, self.run.out_of_domain)
        found = {**accuracy, **averages, **figures}
        self.columns = [*found]
        return np.stack([*found.values()], axis=-1)

    def evidence(self, against: Sequence[str]) -> Evidence:
        """Return intervals, the best of each column, and differences from references."""
        ends = percentiles(self.drawn)
        intervals = {
            name: {
                column: Interval(*map(float, ends[:, row, place]))
                for place, column in enumerate(self.columns)
                if np.isfinite(ends[:, row, place]).all()
            }
            for row, name in enumerate(self.names)
        }
        best: dict[str, list[str]] = {name: [] for name in self.names}
        for column in [*self.run.tasks, *self.averages]:
            for name in self._best(column):
                best[name].append(column)
        return Evidence(intervals, best, {name: self._compared(name) for name in against})

    def _best(self, column: str) -> list[str]:
        """Return the merged candidates that cannot be told from the best one of a column."""
        means = self.by_seed[..., self.columns.index(column)].mean(axis=0)
        top = max(self.merged, key=lambda name: means[self.names.index(name)], default="")
        others = [name for name in self.merged if name != top]
        p_values = dict(
            zip(others, holm([self._p(top, name, column) for name in others]), strict=True)
        )
        return [name for name in self.merged if p_values.get(name, 1.0) >= ALPHA]

    def _compared(self, against: str) -> dict[str, dict[str, Compared]]:
        others = [name for name in self.names if name != against]
        found: dict[str, dict[str, Compared]] = {name: {} for name in others}
        for column in self.columns[len(self.run.tasks) :]:
            drawn = [self._drawn(name, against, column) for name in others]
            if not np.isfinite(drawn).all():  # a figure that some resample does not have
                continue
            p_values = holm([self._p(name, against, column) for name in others])
            for name, differences, p in zip(others, drawn, p_values, strict=True):
                low, high = map(float, percentiles(differences))
                found[name][column] = Compared(Interval(low, high), p)
        return found

    def _drawn(self, one: str, other: str, column: str) -> Array:
        """Return resampled differences, [resamples]."""
        place = self.columns.index(column)
        rows = self.drawn[:, self.names.index(one), place]
        return np.asarray(rows - self.drawn[:, self.names.index(other), place])

    def _p(self, one: str, other: str, column: str) -> float:
        """Return the p value of a difference, uncorrected; its sign does not change it."""
        key = (*sorted((one, other)), column)
        if key not in self._known:
            self._known[key] = self._computed_p(one, other, column)
        return self._known[key]

    def _computed_p(self, one: str, other: str, column: str) -> float:
        """Return the p value of a difference, uncorrected; see `Compared`."""
        first, second = self.names.index(one), self.names.index(other)
        seeds = self.by_seed[:, first] - self.by_seed[:, second]
        behind = (column,) if column in self.cells else self.averages.get(column, self.run.tasks)
        images = sum(
            int((abs(cell[:, first] - cell[:, second]) > ZERO).any(axis=0).sum())
            for cell in (self.cells[task] for task in behind)
        )
        return max(
            p_value(self._drawn(one, other, column)),
            p_of_seeds(seeds[:, self.columns.index(column)]),
            p_of_signs(images),
        )


def _rows(correctness: Correctness, names: Sequence[str], task: str) -> Array:
    """Return what each image adds to the accuracy of each candidate, [rows, images]."""
    means = [correctness.right[name][task].double().mean(dim=0).numpy() for name in names]
    return np.stack(means)


def with_intervals(results: Results, correctness: Correctness) -> Results:
    """Return the results of a run with the interval of every accuracy and average.

    Examples:
        >>> import torch
        >>> from lightning_merge.evaluation import CandidateResult
        >>> right = Correctness({"pets": ""}, {"ties": {"pets": torch.arange(20)[None] < 15}})
        >>> ties = CandidateResult("ties", {"pets": 0.75}, {"pets": 20}, seconds=1.0)
        >>> run = with_intervals(Results(["pets"], {"ties": ties}, 0, versions={}), right)
        >>> run.candidates["ties"].best, run.notes
        (('pets', 'average'), ('Fewer than 30 test examples of pets (20): its interval is rough.',))
    """
    evidence = weigh([results], [correctness])
    rows = {
        name: replace(row, intervals=evidence.intervals[name], best=tuple(evidence.best[name]))
        for name, row in results.candidates.items()
    }
    counts = {task: correctness.images(task) for task in results.tasks}
    few = ", ".join(f"{task} ({count})" for task, count in counts.items() if count < FEW)
    whose = "their intervals are" if ", " in few else "its interval is"
    notes = [f"Fewer than {FEW} test examples of {few}: {whose} rough."] if few else []
    return replace(results, candidates=rows, notes=(*results.notes, *notes))
