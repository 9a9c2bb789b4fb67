"""Mean and spread of results over seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import NamedTuple

from lightning_merge.core.errors import InputError
from lightning_merge.evaluation.results import AVERAGE, CandidateResult, Results


class Spread(NamedTuple):
    """Mean and sample standard deviation (denominator n - 1) over seeds.

    Examples:
        >>> Spread(mean=0.81, std=0.02)
        Spread(mean=0.81, std=0.02)
    """

    mean: float
    std: float


@dataclass(frozen=True)
class CandidateAggregate:
    """One candidate over several seeds; fields as in :class:`CandidateResult`.

    ``samples`` holds the smallest and largest number of test images over the seeds, and
    ``averages`` the spread of each average of the runs, by its name, and so ``figures``, None
    where a run lacks one. Extra parameters and inference cost, which do not depend on the seed,
    are the largest of any run. Peak memory is present if all runs have measured it.
    ``difference`` is the spread of the candidate's average minus that of a reference candidate
    of the same run, if one was named.

    Examples:
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
    extra_parameters: int = 0
    inference_cost: float = 1.0
    difference: Spread | None = None
    figures: Mapping[str, Spread | None] = field(default_factory=dict)

    @property
    def average(self) -> Spread:
        """Mean accuracy over tasks."""
        return self.averages[AVERAGE]


@dataclass(frozen=True)
class Aggregate:
    """Several runs that differ in their seed; fields as in :class:`Results`.

    ``against`` names the reference candidate of the differences, or is None.

    Examples:
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


def aggregate(results: Sequence[Results], against: str | None = None) -> Aggregate:
    """Return mean and spread over seeds, per candidate and task.

    The spread of an average is that of the runs' averages, not the average of spreads.
    Notes and versions that differ between runs are all kept.

    Args:
        results: Two or more runs of the same candidates on the same tasks, with different seeds.
            Rows and columns keep the order of the first run.
        against: Candidate whose average is subtracted from every other's, run by run, so that
            what a run's candidates share, such as good experts, is not in the spread.

    Raises:
        InputError: Fewer than two runs, a seed twice, or different tasks, candidates or
            kinds of tasks; or against is not a candidate.

    Examples:
        >>> runs = []
        >>> for seed, gain in enumerate([0.25, 0.5]):
        ...     average = CandidateResult("average", {"a": 0.5}, {"a": 8}, seconds=1.0)
        ...     ties = replace(average, name="ties", accuracy={"a": 0.5 + gain})
        ...     runs.append(Results(["a"], {"average": average, "ties": ties}, seed, versions={}))
        >>> aggregate(runs, against="average").candidates["ties"].difference.mean
        0.375
    """
    _check_comparable(results)
    first = results[0]
    if against is not None and against not in first.candidates:
        raise InputError(
            f"against={against!r} is not a candidate: give one of {[*first.candidates]}"
        )
    names = _distinct(key for run in results for key in run.versions)
    return Aggregate(
        tasks=tuple(first.tasks),
        candidates={
            name: replace(
                _aggregate_candidate([run.candidates[name] for run in results], first),
                difference=_difference(results, name, against),
                figures=_spread_figures([run.figures(name) for run in results]),
            )
            for name in first.candidates
        },
        seeds=tuple(run.seed for run in results),
        versions={
            key: ", ".join(_distinct(run.versions.get(key, "") for run in results)) for key in names
        },
        command="; ".join(_distinct(run.command for run in results)),
        notes=tuple(_distinct(note for run in results for note in run.notes)),
        unseen=tuple(first.unseen),
        own_split=tuple(first.own_split),
        out_of_domain=tuple(first.out_of_domain),
        against=against,
    )


def _check_comparable(results: Sequence[Results]) -> None:
    seeds = [run.seed for run in results]
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise InputError(
            f"results has the seeds {seeds}: a spread needs two or more runs, each of its own seed"
        )
    first = results[0]
    for run in results[1:]:
        for what in ("tasks", "candidates", "unseen", "own_split", "out_of_domain"):
            here, there = set(getattr(first, what)), set(getattr(run, what))
            if here != there:
                raise InputError(
                    f"results of seed {run.seed} and seed {first.seed} differ in {what} "
                    f"{sorted(here ^ there)}: aggregate runs of the same {what}"
                )


def _aggregate_candidate(runs: Sequence[CandidateResult], first: Results) -> CandidateAggregate:
    tasks = first.tasks
    averages = [run.averages(first.unseen, first.out_of_domain) for run in runs]
    counts = {task: [run.samples[task] for run in runs] for task in tasks}
    peaks = [run.peak_memory for run in runs if run.peak_memory is not None]
    return CandidateAggregate(
        name=runs[0].name,
        accuracy={task: _spread(run.accuracy[task] for run in runs) for task in tasks},
        averages={what: _spread(means[what] for means in averages) for what in averages[0]},
        samples={task: (min(count), max(count)) for task, count in counts.items()},
        seconds=_spread(run.seconds for run in runs),
        note="; ".join(_distinct(run.note for run in runs)),
        transductive=any(run.transductive for run in runs),
        bound=any(run.bound for run in runs),
        peak_memory=_spread(peaks) if len(peaks) == len(runs) else None,
        extra_parameters=max(run.extra_parameters for run in runs),
        inference_cost=max(run.inference_cost for run in runs),
    )


def _difference(results: Sequence[Results], name: str, against: str | None) -> Spread | None:
    if against is None or name == against:
        return None
    return _spread(run.averages(name)[AVERAGE] - run.averages(against)[AVERAGE] for run in results)


def _spread(values: Iterable[float]) -> Spread:
    values = list(values)
    return Spread(fmean(values), stdev(values))


def _spread_figures(runs: Sequence[Mapping[str, float | None]]) -> dict[str, Spread | None]:
    """Return the spread of every figure; None if a run lacks it."""
    values = {name: [run.get(name) for run in runs] for name in runs[0]}
    return {
        name: _spread(found) if len(found) == len(runs) else None
        for name, all_values in values.items()
        for found in [[value for value in all_values if value is not None]]
    }


def _distinct(texts: Iterable[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text]
