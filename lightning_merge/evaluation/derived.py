"""Figures derived from the accuracies of a candidate, the base and the experts.

Accuracies are numbers, or arrays of resampled ones, whose figures are computed entry by entry.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import nan
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lightning_merge.evaluation.candidates import BASE, EXPERTS

Value = TypeVar("Value", float, NDArray[np.float64])

H_SCORE, NORMALISED, GAP, JOINT = "H-score", "normalised", "of the gap", "joint"
DISTANCE, DISTANCE_OUT = "distance", "distance out of domain"
_NO_DIVISOR = " Blank where the divisor is zero."
EXPLAINED = {
    H_SCORE: (
        "H-score: harmonic mean of the averages in and out of domain, in percent.",
        _NO_DIVISOR,
    ),
    NORMALISED: (
        "Normalised: mean over tasks of the accuracy in percent of its expert's.",
        _NO_DIVISOR,
    ),
    GAP: (
        "Of the gap: percent of what the experts add to the base's average.",
        " Blank where they add nothing.",
    ),
    JOINT: (
        "Joint: mean over the domain when a network has to choose among the classes of all its "
        "tasks, those of equal name being one. Heads of class means or of prompts have comparable "
        "scales; those of logistic regression need not.",
        " Blank where a network is told the task.",
    ),
    DISTANCE: (
        "Distance: mean Euclidean distance of the features of test examples from the base's, "
        "averaged over tasks.",
        " Blank where no image of some task was looked at.",
    ),
    DISTANCE_OUT: ("Distance out of domain: the same, out of domain.", ""),
}
"""Column -> a sentence about it, and one about its blanks."""


BESIDE = {
    "matthews": "MCC", "f1": "F1", "auc": "AUC", "spearman": "Spearman", "exact match": "EM"
}  # fmt: skip
"""Metric beside accuracy -> the end of its columns' names."""
EXPLAINED_BESIDE = {
    "MCC": "MCC: Matthews' correlation of predicted and true classes, in percent.",
    "F1": "F1: harmonic mean of precision and recall of the second class, in percent.",
    "AUC": "AUC: probability that an example of the second class scores higher than one of the "
    "first, in percent; it does not depend on a threshold.",
    "EM": "EM: exact match, the share of prompts to which a network writes the right answer, one "
    "likeliest token after another, in percent.",
    "Spearman": "Spearman: rank correlation of predicted and true values, in percent.",
}


def h_score(in_domain: Value, out_of_domain: Value) -> Value:
    """Return the harmonic mean of the accuracies in and out of domain, 2 ID OOD / (ID + OOD).

    It is LwPTV's H-score ("Merging Smarter, Generalizing Better", eq. 14).

    Args:
        in_domain: Mean accuracy over the tasks, in [0, 1].
        out_of_domain: Mean accuracy over the data sets out of domain, in [0, 1].

    Returns:
        A number in [0, 1], or NaN if both are 0.

    Examples:
        >>> h_score(0.75, 0.5)
        0.6
    """
    return _ratio(2 * in_domain * out_of_domain, in_domain + out_of_domain)


def normalised(accuracy: Mapping[str, Value], experts: Mapping[str, Value]) -> Value:
    """Return the mean over tasks of the accuracy divided by that of the task's expert.

    It is the average normalised accuracy of "Editing Models with Task Arithmetic".

    Args:
        accuracy: Task -> accuracy of a network.
        experts: Task -> accuracy of its expert.

    Returns:
        1 for the experts themselves, or NaN if an expert gets no image right.

    Examples:
        >>> normalised({"cars": 0.3, "pets": 0.8}, {"cars": 0.6, "pets": 0.8})
        0.75
    """
    return _mean(_ratio(value, experts[task]) for task, value in accuracy.items())


def share_of_gap(merged: Value, base: Value, experts: Value) -> Value:
    """Return the share of what the experts add to the base, (merged - base) / (experts - base).

    Args:
        merged: Mean accuracy of a network over the tasks.
        base: That of the base.
        experts: That of the experts, each on its own task.

    Returns:
        0 for the base and 1 for the experts, or NaN unless the experts are better than the base.

    Examples:
        >>> share_of_gap(0.625, base=0.5, experts=0.75), share_of_gap(0.5, base=0.5, experts=0.5)
        (0.5, nan)
    """
    return _ratio(merged - base, experts - base)


def derived(
    accuracies: Mapping[str, Mapping[str, Value]],
    name: str,
    tasks: Sequence[str],
    out_of_domain: Sequence[str],
) -> dict[str, Value]:
    """Return the figures of a candidate that a run allows for, by the name of their column.

    What cannot be divided is NaN.

    Args:
        accuracies: Candidate -> accuracy by task; figures need the rows "base" and "individual".
        name: The candidate.
        tasks: Tasks of the domain.
        out_of_domain: Data sets out of domain, if any.

    Examples:
        >>> accuracies = {"base": {"a": 0.5}, "individual": {"a": 1.0}, "ties": {"a": 0.75}}
        >>> derived(accuracies, "ties", ["a"], [])
        {'normalised': 0.75, 'of the gap': 0.5}
    """
    means = {
        row: _mean(accuracies[row][task] for task in tasks)
        for row in (name, BASE, EXPERTS)
        if row in accuracies
    }
    figures: dict[str, Value] = {}
    if out_of_domain:
        apart = _mean(accuracies[name][task] for task in out_of_domain)
        figures[H_SCORE] = h_score(means[name], apart)
    if EXPERTS in accuracies:
        own = {task: accuracies[name][task] for task in tasks}
        figures[NORMALISED] = normalised(own, accuracies[EXPERTS])
    if EXPERTS in accuracies and BASE in accuracies:
        figures[GAP] = share_of_gap(means[name], means[BASE], means[EXPERTS])
    return figures


def _mean(values: Iterable[Value]) -> Value:
    found: list[Any] = [*values]
    return sum(found) / len(found)  # type: ignore[no-any-return]


def _ratio(numerator: Any, denominator: Any) -> Any:
    """Return the ratio where the denominator is positive, and NaN elsewhere."""
    if isinstance(denominator, np.ndarray):
        numerator, denominator = np.broadcast_arrays(numerator, denominator)
        blank = np.full(numerator.shape, nan)
        return np.divide(numerator, denominator, out=blank, where=denominator > 0)
    return numerator / denominator if denominator > 0 else nan
