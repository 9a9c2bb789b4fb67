"""Results of a run, their file, and their mean and spread over seeds."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from lightning_merge import __version__
from lightning_merge.core.checkpoints.files import read_text, write_text
from lightning_merge.core.errors import InputError

AVERAGE = "average"
DISTRIBUTIONS = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "open_clip_torch",
    "timm",
    "transformers",
)


def averaged_tasks(tasks: Sequence[str], unseen: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name of every average of a table -> the tasks that it is over."""
    groups = {AVERAGE: tuple(tasks)}
    if unseen:
        groups["average seen"] = tuple(task for task in tasks if task not in unseen)
        groups["average unseen"] = tuple(task for task in tasks if task in unseen)
    return groups


@dataclass(frozen=True)
class CandidateResult:
    """Test accuracy of one candidate: a merged network, or a reference beside them.

    Attributes:
        name: The candidate's row in every table.
        accuracy: Fraction of correct answers in [0, 1], by task.
        samples: Number of test images behind each accuracy, by task.
        seconds: Wall-clock time that making the candidate took.
        note: What a reader must know, e.g. ``"scale 0.2 chosen on validation"``.
        transductive: Whether the (unlabelled) test images took part in making it.
        bound: Whether it is a reference, such as the base or the individual experts,
            rather than a merged network. References are never marked best.
        peak_memory: Bytes that making the candidate took at the most, beyond what the process
            held before; None where it was not measured.
        extra_parameters: Numbers that are stored beside those of one network.
        inference_cost: Passes of the base network that an image takes.

    Raises:
        InputError: An accuracy is outside [0, 1] or not finite, or the tasks of accuracy and
            samples differ, or there are none, or nothing was measured.
    """

    name: str
    accuracy: Mapping[str, float]
    samples: Mapping[str, int]
    seconds: float
    note: str = ""
    transductive: bool = False
    bound: bool = False
    peak_memory: int | None = None
    extra_parameters: int = 0
    inference_cost: float = 1.0

    def __post_init__(self) -> None:
        if not self.accuracy or set(self.accuracy) != set(self.samples):
            raise InputError(
                f"candidate {self.name!r} has accuracy on {sorted(self.accuracy)} but samples of "
                f"{sorted(self.samples)}: give both for the same tasks, at least one"
            )
        for task, value in self.accuracy.items():
            if not 0 <= value <= 1:
                raise InputError(
                    f"accuracy of candidate {self.name!r} on {task!r} is {value}: "
                    "give the fraction of correct answers, in [0, 1]"
                )
            if self.samples[task] < 1:
                raise InputError(
                    f"samples of candidate {self.name!r} on {task!r} is {self.samples[task]}: "
                    "an accuracy needs at least one test image"
                )

    @property
    def average(self) -> float:
        """Mean accuracy over tasks, each task counting alike, in [0, 1]."""
        return self.averages()[AVERAGE]

    def averages(self, unseen: Sequence[str] = ()) -> dict[str, float]:
        """Mean accuracy over all tasks, and over seen and unseen ones where there are any."""
        return {
            name: fmean(self.accuracy[task] for task in tasks)
            for name, tasks in averaged_tasks([*self.accuracy], unseen).items()
        }


@dataclass(frozen=True)
class Results:
    """All candidates of one run, measured on the same tasks.

    Attributes:
        tasks: Names of the tasks, in the order of the table's columns.
        candidates: Candidates by name, in the order of the table's rows.
        seed: Seed of the run.
        versions: Software and machine, see :func:`versions`.
        command: Command line that repeats the run.
        notes: Protocol, one sentence each, e.g. what was chosen on which split.
        unseen: Tasks of which nothing but the frozen heads took part in merging.
        own_split: Tasks that are published undivided, with a test split of this package's.

    Raises:
        InputError: A candidate lacks a task or has another, stands under another name, or
            there is no candidate; unseen names no task, or all of them.
    """

    tasks: Sequence[str]
    candidates: Mapping[str, CandidateResult]
    seed: int
    versions: Mapping[str, str]
    command: str = ""
    notes: Sequence[str] = ()
    unseen: Sequence[str] = ()
    own_split: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.candidates:
            raise InputError("candidates is empty: results need at least one candidate")
        if self.unseen and not set(self.unseen) < set(self.tasks):
            raise InputError(
                f"unseen is {list(self.unseen)} and tasks is {list(self.tasks)}: name some of the "
                "tasks, not all"
            )
        for name, candidate in self.candidates.items():
            if name != candidate.name:
                raise InputError(
                    f"candidates has {candidate.name!r} under the name {name!r}: use its own name"
                )
            if sorted(candidate.accuracy) != sorted(self.tasks):
                raise InputError(
                    f"candidate {name!r} was measured on {sorted(candidate.accuracy)} but tasks is "
                    f"{sorted(self.tasks)}: measure every candidate on every task, each named once"
                )

    def to_json(self, path: str | Path) -> Path:
        """Write the results to ``path``, whole or not at all, and return it."""
        content: dict[str, Any] = {
            "tasks": list(self.tasks),
            "candidates": {
                name: _candidate_to_dict(candidate, self.tasks)
                for name, candidate in self.candidates.items()
            },
            "seed": self.seed,
            "versions": dict(self.versions),
        }
        optional = {
            "command": self.command,
            "notes": list(self.notes),
            "unseen": list(self.unseen),
            "own_split": list(self.own_split),
        }
        content |= {key: value for key, value in optional.items() if value}
        write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
        return Path(path)

    @classmethod
    def from_json(cls, path: str | Path) -> "Results":
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: The file is missing, not JSON, or not of this form.
        """
        try:
            content = json.loads(read_text(path))
            candidates = {
                name: _candidate_from_dict(name, fields)
                for name, fields in content.pop("candidates").items()
            }
            tasks, notes = tuple(content.pop("tasks")), tuple(content.pop("notes", ()))
            unseen, own = (tuple(content.pop(key, ())) for key in ("unseen", "own_split"))
            return cls(tasks, candidates, notes=notes, unseen=unseen, own_split=own, **content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"cannot read results from {path} ({type(error).__name__}: {error}): "
                "give a results.json that a run has written"
            ) from error


def _candidate_to_dict(candidate: CandidateResult, tasks: Sequence[str]) -> dict[str, Any]:
    optional = {
        field.name: getattr(candidate, field.name)
        for field in fields(candidate)
        if field.default is not MISSING and getattr(candidate, field.name) != field.default
    }
    return {
        "accuracy": {task: float(candidate.accuracy[task]) for task in tasks},
        "average": float(candidate.average),
        "samples": {task: int(candidate.samples[task]) for task in tasks},
        "seconds": float(candidate.seconds),
    } | optional


def _candidate_from_dict(name: str, fields: Mapping[str, Any]) -> CandidateResult:
    stored = {key: value for key, value in fields.items() if key != "average"}
    return CandidateResult(name=name, **stored)


def versions(device: str = "cpu") -> dict[str, str]:
    """Software and machine behind a number, without importing any of the software.

    Args:
        device: Name of the device that computed, as the trainer reports it.

    Returns:
        Version by distribution (those that are installed), and ``python``, ``platform``,
        ``cpus`` (number of logical cores) and ``device``.
    """
    found = {"python": platform.python_version(), "lightning_merge": __version__}
    for distribution in DISTRIBUTIONS:
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    machine = {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
        "device": device,
    }
    return found | machine


class Spread(NamedTuple):
    """Mean and sample standard deviation (denominator n - 1) over seeds."""

    mean: float
    std: float


@dataclass(frozen=True)
class CandidateAggregate:
    """One candidate over several seeds; fields as in :class:`CandidateResult`.

    ``samples`` holds the smallest and largest number of test images over the seeds, and
    ``averages`` the spread of each of a run's averages by its name. Extra parameters and
    inference cost, which the seed does not change, are the largest of any run; the peak of memory
    is there if all runs have measured it; ``difference`` is the spread of what its average is above
    that of another candidate of the same run, where one was named.
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

    @property
    def average(self) -> Spread:
        """Mean accuracy over tasks."""
        return self.averages[AVERAGE]


@dataclass(frozen=True)
class Aggregate:
    """Several runs that differ in their seed; fields as in :class:`Results`.

    ``against`` names the candidate from which differences are taken, None without any.
    """

    tasks: Sequence[str]
    candidates: Mapping[str, CandidateAggregate]
    seeds: Sequence[int]
    versions: Mapping[str, str]
    command: str
    notes: Sequence[str]
    unseen: Sequence[str]
    own_split: Sequence[str]
    against: str | None = None


def aggregate(results: Sequence[Results], against: str | None = None) -> Aggregate:
    """Mean and spread over seeds, per candidate and task.

    The spread of an average is that of the runs' averages, not the average of spreads.
    Notes and versions that differ between runs are all kept.

    Args:
        results: Runs of the same candidates on the same tasks, at least two, each of its own
            seed. Rows and columns keep the order of the first.
        against: Candidate whose average is taken from every other's, run by run: what runs have
            in common, such as a lucky set of experts, is then in no difference's spread.

    Raises:
        InputError: Fewer than two runs, a seed twice, or different tasks, candidates or
            unseen tasks; against is no candidate.
    """
    _check_comparable(results)
    first = results[0]
    if against is not None and against not in first.candidates:
        raise InputError(f"against={against!r} is no candidate: give one of {[*first.candidates]}")
    names = _distinct(key for run in results for key in run.versions)
    return Aggregate(
        tasks=tuple(first.tasks),
        candidates={
            name: replace(
                _aggregate_candidate(
                    [run.candidates[name] for run in results], first.tasks, first.unseen
                ),
                difference=_difference(results, name, against),
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
        for what in ("tasks", "candidates", "unseen", "own_split"):
            here, there = set(getattr(first, what)), set(getattr(run, what))
            if here != there:
                raise InputError(
                    f"results of seed {run.seed} and seed {first.seed} differ in {what} "
                    f"{sorted(here ^ there)}: aggregate runs of the same {what}"
                )


def _aggregate_candidate(
    runs: Sequence[CandidateResult], tasks: Sequence[str], unseen: Sequence[str]
) -> CandidateAggregate:
    averages = [run.averages(unseen) for run in runs]
    counts = {task: [run.samples[task] for run in runs] for task in tasks}
    peaks = [run.peak_memory for run in runs if run.peak_memory is not None]
    return CandidateAggregate(
        name=runs[0].name,
        accuracy={task: _spread(run.accuracy[task] for run in runs) for task in tasks},
        averages={name: _spread(found[name] for found in averages) for name in averages[0]},
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
    return _spread(
        run.candidates[name].average - run.candidates[against].average for run in results
    )


def _spread(values: Iterable[float]) -> Spread:
    values = list(values)
    return Spread(fmean(values), stdev(values))


def _distinct(texts: Iterable[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text]
