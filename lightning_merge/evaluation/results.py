"""Results of a run, and their file."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib import metadata
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning_merge import __version__
from lightning_merge.core.checkpoints.files import read_text, write_text
from lightning_merge.core.errors import InputError
from lightning_merge.evaluation.bootstrap import Interval
from lightning_merge.evaluation.derived import DISTANCE, DISTANCE_OUT, JOINT, derived

AVERAGE = "average"
OUT_OF_DOMAIN_AVERAGE = "average out of domain"
DISTRIBUTIONS = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "open_clip_torch",
    "timm",
    "transformers",
)


def averaged_tasks(
    tasks: Sequence[str], unseen: Sequence[str] = (), out_of_domain: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Map the name of every average of a table to the tasks that it covers.

    The average is over the domain; what is out of domain has an average of its own.

    Args:
        tasks: All that was measured.
        unseen: Tasks that have an expert, which is not merged.
        out_of_domain: Data sets without an expert.

    Examples:
        >>> averaged_tasks(["mnist", "cars"], unseen=["cars"])["average seen"]
        ('mnist',)
        >>> averaged_tasks(["mnist", "food"], out_of_domain=["food"])
        {'average': ('mnist',), 'average out of domain': ('food',)}
    """
    inside = tuple(task for task in tasks if task not in out_of_domain)
    groups = {AVERAGE: inside}
    if unseen:
        groups["average seen"] = tuple(task for task in inside if task not in unseen)
        groups["average unseen"] = tuple(task for task in inside if task in unseen)
    if out_of_domain:
        groups[OUT_OF_DOMAIN_AVERAGE] = tuple(task for task in tasks if task in out_of_domain)
    return groups


@dataclass(frozen=True)
class CandidateResult:
    """Test accuracy of one candidate: a merged network, or a reference to compare with.

    Attributes:
        name: The candidate's row in every table.
        accuracy: Fraction of correct answers in [0, 1], by task.
        samples: Number of test examples behind each accuracy, by task.
        seconds: Wall-clock time of making the candidate.
        note: What a reader must know, e.g. ``"scale 0.2 chosen on validation"``.
        transductive: Whether the (unlabelled) test examples were used to make it.
        bound: Whether it is a reference, such as the base or the individual experts,
            rather than a merged network. References are never marked best.
        peak_memory: Peak memory of making the candidate in bytes, beyond what the process held
            before; None if it was not measured.
        extra_parameters: Parameters stored in addition to those of one network.
        inference_cost: Forward passes of the base network per image.
        update_bytes: Bytes of the values that differ from the base's, which is what one set of
            weights costs to keep beside the base; None where this was not counted.
        joint: Fraction of correct answers among the classes of all tasks, by task of the domain, if
            it was measured.
        distance: Distance of the features from the base's, by task, if it was measured.
        beside: What the field measures beside accuracy, by column, such as "wikiqa AUC".
        seen: What it was made with and its network is told, any of "unlabelled", "labelled" and
            "task"; None if that was not recorded.
        searched: Hyperparameters that were tried, as in "scale=0.3" -> average accuracy on the
            held-out examples, by which they were chosen; None without a search.
        intervals: 95 % interval over test examples, by task, average and figure; empty if unknown.
        best: Tasks and averages in which it cannot be told from the best merged network.

    Raises:
        InputError: An accuracy is outside [0, 1] or not finite, accuracy and samples are empty
            or of different tasks, or a task has no samples.

    Examples:
        >>> samples = {"mnist": 10_000, "cars": 8_041}
        >>> ties = CandidateResult("ties", {"mnist": 0.98, "cars": 0.64}, samples, seconds=3.2)
        >>> round(ties.average, 3)
        0.81
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
    update_bytes: int | None = None
    joint: Mapping[str, float] | None = None
    distance: Mapping[str, float] | None = None
    beside: Mapping[str, float] | None = None
    seen: Sequence[str] | None = None
    searched: Mapping[str, float] | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    best: Sequence[str] = ()

    def __post_init__(self) -> None:
        if wrong := {task: v for task, v in (self.joint or {}).items() if not 0 <= v <= 1}:
            raise InputError(
                f"joint of candidate {self.name!r} is {wrong}: give fractions in [0, 1]"
            )
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
        """Mean accuracy over all that was measured, each task counting alike, in [0, 1]."""
        return self.averages()[AVERAGE]

    def averages(
        self, unseen: Sequence[str] = (), out_of_domain: Sequence[str] = ()
    ) -> dict[str, float]:
        """Return the mean accuracies over the groups of `averaged_tasks`, by name."""
        return {
            name: fmean(self.accuracy[task] for task in tasks)
            for name, tasks in averaged_tasks([*self.accuracy], unseen, out_of_domain).items()
        }


@dataclass(frozen=True)
class Results:
    """All candidates of one run, measured on the same tasks.

    The file has averages and derived figures for readers; here they follow from the accuracies.

    Attributes:
        tasks: Names of the tasks, in the order of the table's columns.
        candidates: Candidates by name, in the order of the table's rows.
        seed: Seed of the run.
        versions: Software and machine, see :func:`versions`.
        command: Command line that repeats the run.
        notes: Protocol, one sentence each, e.g. what was chosen on which split.
        unseen: Tasks of which only the frozen heads were used in merging.
        own_split: Tasks that are published undivided, with a test split made by this package.
        out_of_domain: Those of the tasks that are data sets without an expert.
        corruption: Name and severity of what corrupts the test examples; "" for nothing.

    Raises:
        InputError: A candidate lacks a task, has an additional one or has another name, there is
            no candidate, or unseen and out_of_domain are not distinct tasks that leave some.

    Examples:
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> path = Results(["mnist"], {"ties": ties}, seed=0, versions=versions()).to_json("r.json")
        >>> Results.from_json(path).candidates["ties"].accuracy
        {'mnist': 0.98}
    """

    tasks: Sequence[str]
    candidates: Mapping[str, CandidateResult]
    seed: int
    versions: Mapping[str, str]
    command: str = ""
    notes: Sequence[str] = ()
    unseen: Sequence[str] = ()
    own_split: Sequence[str] = ()
    out_of_domain: Sequence[str] = ()
    corruption: str = ""

    def __post_init__(self) -> None:
        if not self.candidates:
            raise InputError("candidates is empty: results need at least one candidate")
        apart = [*self.unseen, *self.out_of_domain]
        if len(set(apart)) < len(apart) or (apart and not set(apart) < set(self.tasks)):
            raise InputError(
                f"unseen is {list(self.unseen)}, out_of_domain {list(self.out_of_domain)} and "
                f"tasks is {list(self.tasks)}: name some of the tasks, not all, and none twice"
            )
        for name, candidate in self.candidates.items():
            if name != candidate.name:
                raise InputError(
                    f"candidates lists {candidate.name!r} under the name {name!r}: use its own name"
                )
            if sorted(candidate.accuracy) != sorted(self.tasks):
                raise InputError(
                    f"candidate {name!r} was measured on {sorted(candidate.accuracy)} but tasks is "
                    f"{sorted(self.tasks)}: measure every candidate on every task, each named once"
                )

    @property
    def in_domain(self) -> tuple[str, ...]:
        """The tasks that have experts."""
        return averaged_tasks(self.tasks, out_of_domain=self.out_of_domain)[AVERAGE]

    def averages(self, name: str) -> dict[str, float]:
        """Return the mean accuracies of a candidate by group, see `averaged_tasks`."""
        return self.candidates[name].averages(self.unseen, self.out_of_domain)

    def figures(self, name: str) -> dict[str, float | None]:
        """Return the figures of a candidate that follow from accuracies, by column."""
        accuracies = {row: found.accuracy for row, found in self.candidates.items()}
        found = derived(accuracies, name, self.in_domain, self.out_of_domain)
        figures: dict[str, float | None] = {c: None if isnan(v) else v for c, v in found.items()}
        if any(row.joint for row in self.candidates.values()):
            joint = self.candidates[name].joint
            figures[JOINT] = fmean(joint.values()) if joint else None
        if any(row.distance for row in self.candidates.values()):
            distance = self.candidates[name].distance or {}
            for column, tasks in {
                DISTANCE: self.in_domain,
                DISTANCE_OUT: self.out_of_domain,
            }.items():
                if tasks:
                    known = all(task in distance for task in tasks)
                    figures[column] = fmean(distance[task] for task in tasks) if known else None
        every = (row.beside or {} for row in self.candidates.values())
        own = self.candidates[name].beside or {}
        return figures | {column: own.get(column) for found in every for column in found}

    def content(self) -> dict[str, Any]:
        """Return what the file holds."""
        content: dict[str, Any] = {
            "tasks": list(self.tasks),
            "candidates": {
                name: _candidate_to_dict(candidate, self.tasks, self.averages(name)[AVERAGE])
                | ({"figures": figures} if (figures := self.figures(name)) else {})
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
            "out_of_domain": list(self.out_of_domain),
            "corruption": self.corruption,
        }
        return content | {key: value for key, value in optional.items() if value}

    def to_json(self, path: str | Path) -> Path:
        """Write the results to ``path``, whole or not at all, and return it."""
        write_text(path, json.dumps(self.content(), indent=2, allow_nan=False) + "\n")
        return Path(path)

    @classmethod
    def from_json(cls, path: str | Path) -> "Results":
        """Read a file written by :meth:`to_json`.

        Raises:
            InputError: The file is missing, not JSON, or not of this form.
        """
        try:
            content = json.loads(read_text(path))
            candidates = {
                name: _candidate_from_dict(name, fields)
                for name, fields in content.pop("candidates").items()
            }
            tasks = tuple(content.pop("tasks"))
            lists: dict[str, Any] = {
                key: tuple(content.pop(key, ()))
                for key in ("notes", "unseen", "own_split", "out_of_domain")
            }
            return cls(tasks, candidates, **lists, **content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"cannot read results from {path} ({type(error).__name__}: {error}): "
                "give a results.json that a run has written"
            ) from error


def _candidate_to_dict(
    candidate: CandidateResult, tasks: Sequence[str], average: float
) -> dict[str, Any]:
    optional = {
        entry.name: getattr(candidate, entry.name)
        for entry in fields(candidate)
        if _default(entry) not in (MISSING, getattr(candidate, entry.name))
    }
    return {
        "accuracy": {task: float(candidate.accuracy[task]) for task in tasks},
        "average": float(average),
        "samples": {task: int(candidate.samples[task]) for task in tasks},
        "seconds": float(candidate.seconds),
    } | optional


def _default(entry: "Field[Any]") -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _candidate_from_dict(name: str, fields: Mapping[str, Any]) -> CandidateResult:
    stored = {key: value for key, value in fields.items() if key not in ("average", "figures")}
    intervals = {key: Interval(*ends) for key, ends in stored.pop("intervals", {}).items()}
    best = tuple(stored.pop("best", ()))
    seen = None if (given := stored.pop("seen", None)) is None else tuple(given)
    return CandidateResult(name=name, intervals=intervals, best=best, seen=seen, **stored)


def versions(device: str = "cpu") -> dict[str, str]:
    """Return versions of software and machine, without importing any of the software.

    Args:
        device: Name of the device that computed, as the trainer reports it.

    Returns:
        Version by distribution (those that are installed), and ``python``, ``platform``,
        ``cpus`` (number of logical cores) and ``device``.

    Examples:
        >>> versions("cuda: NVIDIA H100")["device"]
        'cuda: NVIDIA H100'
    """
    software = {"python": platform.python_version(), "lightning_merge": __version__}
    for distribution in DISTRIBUTIONS:
        try:
            software[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    machine = {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
        "device": device,
    }
    return software | machine
