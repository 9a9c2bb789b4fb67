"""Mean and spread of results over seeds; a single run is the case of one seed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import NamedTuple

from lightning_merge.core.errors import InputError
from lightning_merge.evaluation.bootstrap import Interval
from lightning_merge.evaluation.correctness import Correctness
from lightning_merge.evaluation.evidence import Compared, Evidence, obstacle, weigh
from lightning_merge.evaluation.results import (
    AVERAGE,
    CandidateResult,
    Results,
)


class Spread(NamedTuple):
    """Mean and sample standard deviation (denominator n - 1) over seeds; None of a single one.

    Examples:
        >>> Spread(mean=0.81, std=0.02)
        Spread(mean=0.81, std=0.02)
    """

    mean: float
    std: float | None = None


class Difference(NamedTuple):
    """Mean and spread of a difference of two candidates.

    Attributes:
        spread: Over seeds.
        compared: What the test examples say, if it is known.

    Examples:
        >>> Difference(Spread(0.02, 0.01)).compared is None
        True
    """

    spread: Spread
    compared: Compared | None = None


@dataclass(frozen=True)
class CandidateAggregate:
    """One candidate over one or several seeds; fields as in :class:`CandidateResult`.

    ``samples`` holds the smallest and largest number of test examples over the seeds, and
    ``averages`` the spread of each average of the runs, by its name, and so ``figures``, None
    where a run lacks one. Extra parameters and inference cost, which do not depend on the seed,
    are the largest of any run. Peak memory is present if all runs have measured it.
    ``differences`` has, by average and figure, what the candidate has beyond a reference candidate
    of the same run, if one was named. ``seen`` is what any run has recorded, None if one has not,
    and ``searched`` has the hyperparameters that all runs tried.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult
        >>> runs = [
        ...     Results(["a"], {"ties": CandidateResult("ties", {"a": x}, {"a": 8}, 1.0)}, seed, {})
        ...     for seed, x in enumerate([0.5, 0.75])
        ... ]
        >>> aggregate(runs).candidates["ties"].average.mean
        0.625
    """

    name: str
    accuracy: Mapping[str, Spread]
    averages: Mapping[str, Spread]
    samples: Mapping[str, tuple[int, int]]
    seconds: Spread
    note: str
    transductive: bool
    bound: bool
    peak_memory: Spread | None = None
    update_bytes: Spread | None = None
    extra_parameters: int = 0
    inference_cost: float = 1.0
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    best: Sequence[str] = ()
    differences: Mapping[str, Difference] = field(default_factory=dict)
    figures: Mapping[str, Spread | None] = field(default_factory=dict)
    seen: Sequence[str] | None = None
    searched: Mapping[str, Spread] = field(default_factory=dict)

    @property
    def average(self) -> Spread:
        """Mean accuracy over tasks."""
        return self.averages[AVERAGE]


@dataclass(frozen=True)
class Aggregate:
    """One run, or several that differ in their seed; fields as in :class:`Results`.

    ``against`` names the reference candidate of the differences, or is None.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult
        >>> ties = CandidateResult("ties", {"a": 0.5}, {"a": 8}, seconds=1.0)
        >>> runs = [Results(["a"], {"ties": ties}, seed, versions={}) for seed in (0, 1)]
        >>> aggregate(runs).seeds
        (0, 1)
    """

    tasks: Sequence[str]
    candidates: Mapping[str, CandidateAggregate]
    seeds: Sequence[int]
    versions: Mapping[str, str]
    command: str
    notes: Sequence[str]
    unseen: Sequence[str]
    own_split: Sequence[str]
    out_of_domain: Sequence[str] = ()
    against: str | None = None


def aggregate(
    results: Sequence[Results],
    against: str | None = None,
    correctness: Sequence[Correctness | None] | None = None,
) -> Aggregate:
    """Return mean and spread over seeds, per candidate and task, and what can be told from them.

    The spread of an average is that of the runs' averages, not the average of spreads.
    Notes and versions that differ between runs are all kept. If the runs cannot have intervals, a
    note says why.

    Args:
        results: Runs of the same candidates on the same tasks, with different seeds. Rows and
            columns keep the order of the first run.
        against: Candidate whose average is subtracted from every other's, run by run, so that
            what a run's candidates share, such as good experts, is not in the spread.
        correctness: What each run answered correctly, for intervals over images and seeds; None
            for those that a single run has stored with its results.

    Raises:
        InputError: There is no run, a seed occurs twice, tasks, candidates, kinds of tasks or
            corruptions differ, or against is not a candidate.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult
        >>> runs = []
        >>> for seed, gain in enumerate([0.25, 0.5]):
        ...     average = CandidateResult("average", {"a": 0.5}, {"a": 8}, seconds=1.0)
        ...     ties = replace(average, name="ties", accuracy={"a": 0.5 + gain})
        ...     runs.append(Results(["a"], {"average": average, "ties": ties}, seed, versions={}))
        >>> aggregate(runs, against="average").candidates["ties"].differences["average"].spread.mean
        0.375
    """
    _check_comparable(results)
    first = results[0]
    if against is not None and against not in first.candidates:
        raise InputError(
            f"against={against!r} is not a candidate: give one of {[*first.candidates]}"
        )
    names = _distinct(key for run in results for key in run.versions)
    why_not, evidence = _evidence(results, against, correctness)
    notes = [*(note for run in results for note in run.notes), why_not]
    return Aggregate(
        tasks=tuple(first.tasks),
        candidates={name: _row(results, name, against, evidence) for name in first.candidates},
        seeds=tuple(run.seed for run in results),
        versions={
            key: ", ".join(_distinct(run.versions.get(key, "") for run in results)) for key in names
        },
        command="; ".join(_distinct(run.command for run in results)),
        notes=tuple(_distinct(notes)),
        unseen=tuple(first.unseen),
        own_split=tuple(first.own_split),
        out_of_domain=tuple(first.out_of_domain),
        against=against,
    )


def _check_comparable(results: Sequence[Results]) -> None:
    seeds = [run.seed for run in results]
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(
            f"results has the seeds {seeds}: give one or more runs, each of its own seed"
        )
    first = results[0]
    for run in results[1:]:
        if run.corruption != first.corruption:
            found = ", ".join(f"{r.corruption or 'none'} (seed {r.seed})" for r in (first, run))
            raise InputError(
                f"results are of test examples with different corruptions, {found}: aggregate runs "
                "of the same corruption, and give each its own table"
            )
        for what in ("tasks", "candidates", "unseen", "own_split", "out_of_domain"):
            here, there = set(getattr(first, what)), set(getattr(run, what))
            if here != there:
                raise InputError(
                    f"results of seed {run.seed} and seed {first.seed} differ in {what} "
                    f"{sorted(here ^ there)}: aggregate runs of the same {what}"
                )


def _evidence(
    results: Sequence[Results],
    against: str | None,
    correctness: Sequence[Correctness | None] | None,
) -> tuple[str, Evidence]:
    """Return why there are no intervals, or "", and the evidence; that of a run may be stored."""
    if correctness is None:
        rows = results[0].candidates.values() if len(results) == 1 else ()
        return "", Evidence({r.name: r.intervals for r in rows}, {r.name: r.best for r in rows}, {})
    if why_not := obstacle(results, correctness):
        return why_not, Evidence({}, {}, {})
    references = () if against is None else (against,)
    return "", weigh(results, [found for found in correctness if found], references)


def _row(
    results: Sequence[Results], name: str, against: str | None, evidence: Evidence
) -> CandidateAggregate:
    other = None if against in (None, name) else against
    return replace(
        _aggregate_candidate(results, name),
        intervals=evidence.intervals.get(name, {}),
        best=tuple(evidence.best.get(name, ())),
        differences={} if other is None else _differences(results, name, other, evidence),
    )


def _differences(
    results: Sequence[Results], name: str, other: str, evidence: Evidence
) -> dict[str, Difference]:
    """Return the differences of all averages and figures that every run has."""
    runs = [[{**run.averages(row), **run.figures(row)} for row in (name, other)] for run in results]
    compared = evidence.compared.get(other, {}).get(name, {})
    found = {}
    for column in runs[0][0]:
        spread = _spread_of_all([_minus(own.get(column), its.get(column)) for own, its in runs])
        if spread is not None:
            found[column] = Difference(spread, compared.get(column))
    return found


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _aggregate_candidate(results: Sequence[Results], name: str) -> CandidateAggregate:
    runs, tasks = [run.candidates[name] for run in results], results[0].tasks
    averages = [run.averages(name) for run in results]
    figures = [run.figures(name) for run in results]
    counts = {task: [run.samples[task] for run in runs] for task in tasks}
    peaks = [run.peak_memory for run in runs if run.peak_memory is not None]
    stored = [run.update_bytes for run in runs if run.update_bytes is not None]
    return CandidateAggregate(
        name=name,
        accuracy={task: _spread(run.accuracy[task] for run in runs) for task in tasks},
        averages={what: _spread(run[what] for run in averages) for what in averages[0]},
        figures={what: _spread_of_all([run.get(what) for run in figures]) for what in figures[0]},
        samples={task: (min(count), max(count)) for task, count in counts.items()},
        seconds=_spread(run.seconds for run in runs),
        note="; ".join(_distinct(run.note for run in runs)),
        transductive=any(run.transductive for run in runs),
        bound=any(run.bound for run in runs),
        peak_memory=_spread(peaks) if len(peaks) == len(runs) else None,
        update_bytes=_spread(stored) if len(stored) == len(runs) else None,
        extra_parameters=max(run.extra_parameters for run in runs),
        inference_cost=max(run.inference_cost for run in runs),
        seen=_seen(runs),
        searched=_searched(runs),
    )


def _seen(runs: Sequence[CandidateResult]) -> tuple[str, ...] | None:
    """Return what a candidate was allowed to see in any run; None if one did not record it."""
    if any(run.seen is None for run in runs):
        return None
    return tuple(_distinct(what for run in runs for what in run.seen or ()))


def _searched(runs: Sequence[CandidateResult]) -> dict[str, Spread]:
    """Return the held-out accuracies of the hyperparameters that all runs tried."""
    tried = [run.searched or {} for run in runs]
    return {
        point: _spread(scores[point] for scores in tried)
        for point in tried[0]
        if all(point in scores for scores in tried)
    }


def _spread(values: Iterable[float]) -> Spread:
    values = list(values)
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


def _spread_of_all(values: Sequence[float | None]) -> Spread | None:
    found = [value for value in values if value is not None]
    return _spread(found) if len(found) == len(values) else None


def _distinct(texts: Iterable[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text]
