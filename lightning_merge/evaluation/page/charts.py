"""Charts of a page as positions in percent, which the template draws as SVG."""

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import StringIO
from math import ceil, floor, isfinite, log10
from typing import Any

from lightning_merge.evaluation.candidates import BASE, BOUNDS, EXPERTS
from lightning_merge.evaluation.page.study import Study
from lightning_merge.evaluation.page.table import ends, percent
from lightning_merge.evaluation.results import AVERAGE, OUT_OF_DOMAIN_AVERAGE

FEW_ARROWS = 3
"""Arrows whose ends have their names beside them."""
Point = dict[str, Any]
"""Row, position and text of a mark."""


class Scale:
    """A linear or logarithmic axis.

    Args:
        values: What it has to hold.
        log: Whether steps are powers of ten; values are then positive.

    Examples:
        >>> scale = Scale([12.0, 57.0])
        >>> [label for _, label in scale.ticks], round(scale(35.0))
        (['10', '20', '30', '40', '50', '60'], 50)
        >>> [label for _, label in Scale([0.2, 30.0], log=True).ticks]
        ['0.1', '1', '10', '100']
    """

    def __init__(self, values: Iterable[float], log: bool = False) -> None:
        found = [log10(value) if log else value for value in values]
        low, high = min(found), max(found)
        step = 1.0 if log else _step(max(high - low, 1e-9))
        self.log = log
        self.low, self.high = floor(low / step) * step, ceil(high / step) * step
        if self.high <= self.low:
            self.high = self.low + step
        count = round((self.high - self.low) / step)
        self.ticks = [
            (round(100 * i / count, 3), _label(self.low + i * step, log)) for i in range(count + 1)
        ]

    def __call__(self, value: float) -> float:
        """Return the position of a value in percent of the axis."""
        place = log10(value) if self.log else value
        return round(100 * (place - self.low) / (self.high - self.low), 2)


def _step(span: float) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that makes four to eight of them."""
    size = 10.0 ** floor(log10(span / 4))
    return next(size * factor for factor in (1, 2, 5, 10) if span / (size * factor) <= 8)


def _label(value: float, log: bool) -> str:
    return f"{10**value:g}" if log else f"{round(value, 9):g}"


def kind(name: str) -> str:
    """Return how a row is drawn: as "base", "individual", "multi_task" or "merged".

    Examples:
        >>> kind("base"), kind("ties")
        ('base', 'merged')
    """
    return name if name in BOUNDS else "merged"


def tracks(study: Study) -> dict[str, Any]:
    """Return one line of dots per data set, with the interval of each row.

    Args:
        study: The runs.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> from lightning_merge.evaluation.page.runs import Run
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> found = Study.of([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))])
        >>> tracks(found)["tasks"][0]["text"]
        'mnist: ties 98.0 percent'
    """
    tasks = study.table.tasks
    cells = [(name, task) for task in tasks for name in study.names]
    means = [study.table.candidates[name].accuracy[task].mean for name, task in cells]
    known = [found for cell in cells if (found := study.interval(*cell)) is not None]
    scale = Scale([100 * value for value in (*means, *(end for found in known for end in found))])
    return {
        "ticks": scale.ticks,
        "tasks": [
            {
                "name": task,
                "apart": task in study.table.out_of_domain,
                "points": [_dot(study, scale, name, task) for name in study.names],
                "text": _spoken(study, task),
            }
            for task in tasks
        ],
    }


def _dot(study: Study, scale: Scale, name: str, task: str) -> Point:
    value, interval = study.value(name, task), study.interval(name, task)
    assert value is not None
    text = f"{name}: {percent(value)} {ends(interval)}".strip()
    point = {
        "row": name, "kind": kind(name), "x": scale(100 * value.mean), "text": text, "dear": False
    }  # fmt: skip
    if interval is not None:
        point |= {"low": scale(100 * interval.low), "high": scale(100 * interval.high)}
    return point


def _spoken(study: Study, task: str) -> str:
    """Return a line of dots in words."""
    named = dict.fromkeys(name for name in (BASE, EXPERTS, study.best.name) if name in study.names)
    parts = (
        f"{name} {percent(study.value(name, task))} {ends(study.interval(name, task))}".strip()
        for name in named
    )
    return f"{task}: {', '.join(parts)} percent"


def in_and_out(study: Study) -> dict[str, Any] | None:
    """Return rows by accuracy in and out of domain, with arrows to the same method + LwPTV.

    Args:
        study: The runs.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> from lightning_merge.evaluation.page.runs import Run
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> found = Study.of([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))])
        >>> in_and_out(found) is None  # there is nothing out of domain
        True
    """
    if not study.table.out_of_domain:
        return None
    found = {
        name: (100 * row.averages[AVERAGE].mean, 100 * row.averages[OUT_OF_DOMAIN_AVERAGE].mean)
        for name, row in study.table.candidates.items()
    }
    x, y = (Scale([place[axis] for place in found.values()]) for axis in (0, 1))
    points = [_mark(study, name, x(a), y(b), f"{a:.1f} in, {b:.1f} out") for name, (a, b)
              in found.items()]  # fmt: skip
    places = {point["row"]: point for point in points}
    arrows = [(places[one], places[two]) for one, two in pruned_pairs(study)]
    for point in (point for arrow in arrows[:FEW_ARROWS] for point in arrow):
        point["named"] = True
    (inside, outside), best = found[study.best.name], study.best.name
    text = (
        f"{len(points)} rows by average accuracy in and out of domain; {best} has {inside:.1f} and "
        f"{outside:.1f} percent"
    )
    return {
        "x": x.ticks, "y": y.ticks, "points": points, "lines": [], "arrows": arrows, "text": text
    }  # fmt: skip


def pruned_pairs(study: Study) -> list[tuple[str, str]]:
    """Return each method with the row of the same method behind LwPTV, by their notes.

    Args:
        study: The runs.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> from lightning_merge.evaluation.page.runs import Run
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> found = Study.of([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))])
        >>> pruned_pairs(found)
        []
    """
    made = {name: _made_by(row.note) for name, row in study.table.candidates.items()}
    first = {classes: name for name, classes in reversed([*made.items()])}
    found = []
    for name, classes in made.items():
        plain = tuple(c for c in classes if c != "LwPTV")
        if plain != classes and plain in first:
            found.append((first[plain], name))
    return found


def _made_by(note: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\b([A-Z]\w*)\(", note))


def against_cost(study: Study) -> dict[str, Any] | None:
    """Return merged rows by seconds of making and accuracy, with references as lines.

    Args:
        study: The runs.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> from lightning_merge.evaluation.page.runs import Run
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> found = Study.of([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))])
        >>> against_cost(found) is None  # of a single row
        True
    """
    rows = {n: r for n, r in study.table.candidates.items() if not r.bound and r.seconds.mean > 0}
    if len(rows) < 2:
        return None
    references = [name for name in BOUNDS if name in study.names]
    average = {
        name: 100 * study.table.candidates[name].averages[AVERAGE].mean
        for name in [*rows, *references]
    }
    x = Scale([row.seconds.mean for row in rows.values()], log=True)
    y = Scale([*average.values()])
    points = [
        _mark(study, name, x(row.seconds.mean), y(average[name]),
              f"{average[name]:.1f} in {row.seconds.mean:,.1f} s")
        for name, row in rows.items()
    ]  # fmt: skip
    lines = [{"name": name, "y": y(average[name])} for name in references]
    quick = min(rows, key=lambda name: rows[name].seconds.mean)
    text = (
        f"{len(points)} merged networks by seconds of making and average accuracy; the fastest is "
        f"{points[[*rows].index(quick)]['text']}"
    )
    return {
        "x": x.ticks, "y": y.ticks, "points": points, "lines": lines, "arrows": [], "text": text
    }  # fmt: skip


def _mark(study: Study, name: str, x: float, y: float, text: str) -> Point:
    row = study.table.candidates[name]
    dear = row.inference_cost > 1 or row.extra_parameters > 0
    return {
        "row": name, "kind": kind(name), "x": x, "y": round(100 - y, 2), "dear": dear,
        "text": f"{name}: {text}", "left": x > 70, "named": row.bound,
    }  # fmt: skip


def searches(study: Study) -> list[dict[str, Any]]:
    """Return the held-out accuracies of every hyperparameter that was searched.

    Args:
        study: The runs.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> from lightning_merge.evaluation.page.runs import Run
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> found = Study.of([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))])
        >>> searches(found)
        []
    """
    found = []
    for name, row in study.table.candidates.items():
        tried = {point: 100 * spread.mean for point, spread in row.searched.items()}
        for parameter, values in _by_parameter(tried).items():
            x, y = Scale([v for v, _ in values]), Scale([v for _, v in values])
            top = max(values, key=lambda pair: pair[1])
            found.append({
                "row": name, "parameter": parameter, "x": x.ticks, "y": y.ticks,
                "points": [(x(a), round(100 - y(b), 2), a, b) for a, b in sorted(values)],
                "joined": "=" not in "".join(p.partition(" ")[2] for p in tried),
                "text": f"{name}: {len(values)} values of {parameter}; the best on the held-out "
                        f"examples is {top[0]:g} with {top[1]:.1f} percent",
            })  # fmt: skip
    return found


def _by_parameter(tried: dict[str, float]) -> dict[str, list[tuple[float, float]]]:
    """Return value and accuracy at all points, by parameter; only of those that are numbers."""
    found: dict[str, list[tuple[float, float]]] = {}
    for point, accuracy in tried.items():
        for parameter, text in (part.split("=", 1) for part in point.split(" ") if "=" in part):
            values = found.setdefault(parameter, [])
            with suppress(ValueError):
                if isfinite(value := float(text)):
                    values.append((value, accuracy))
    return {name: values for name, values in found.items() if len({v for v, _ in values}) > 1}


def training(study: Study) -> dict[str, Any] | None:
    """Return the loss of every run by step, if metrics.csv has one.

    Args:
        study: The runs.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> from lightning_merge.evaluation.page.runs import Run
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> found = Study.of([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))])
        >>> training(found) is None  # the run has no metrics.csv
        True
    """
    lines = {run.results.seed: [*_losses(run.metrics)] for run in study.runs}
    lines = {seed: line for seed, line in lines.items() if len(line) > 1}
    if not lines:
        return None
    x = Scale([step for line in lines.values() for step, _ in line])
    y = Scale([loss for line in lines.values() for _, loss in line])
    spoken = (
        f"seed {seed} from {line[0][1]:.3g} to {line[-1][1]:.3g}" for seed, line in lines.items()
    )
    return {
        "x": x.ticks,
        "y": y.ticks,
        "lines": [
            {"name": f"seed {seed}", "points": [(x(a), round(100 - y(b), 2)) for a, b in line]}
            for seed, line in lines.items()
        ],
        "text": f"Training loss by step: {', '.join(spoken)}",
    }


def _losses(metrics: str) -> Iterator[tuple[float, float]]:
    """Yield step and loss of a metrics.csv, a few hundred at most."""
    rows = [row for row in csv.DictReader(StringIO(metrics)) if row.get("train/loss")]
    every = max(1, len(rows) // 300)
    for row in [*rows[:-1:every], *rows[-1:]]:
        try:
            step, loss = float(row["step"]), float(row["train/loss"])
        except (KeyError, ValueError):
            return
        if isfinite(loss):
            yield step, loss
