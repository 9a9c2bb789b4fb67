"""What a candidate was allowed to see, as badges."""

import re
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from lightning_merge.core.facts import shown_to
from lightning_merge.evaluation.aggregates import CandidateAggregate
from lightning_merge.methods.base import Method, Transform, registered


class Badge(NamedTuple):
    """A label.

    Attributes:
        text: One to four words.
        why: A sentence.
        kind: "free", "data", "labels", "task" or "test", for its colour.

    Examples:
        >>> Badge("data-free", "Made from weights alone.", "free").kind
        'free'
    """

    text: str
    why: str
    kind: str


FREE = Badge("data-free", "Made from weights alone.", "free")
UNLABELLED = Badge("unlabelled", "Made with unlabelled held-out examples.", "data")
LABELLED = Badge("labelled", "Made with labelled held-out examples.", "labels")
CHOSEN = Badge("chosen on held-out", "Its hyperparameters were chosen by labelled held-out "
               "examples.", "labels")  # fmt: skip
TOLD = Badge("told the task", "Its network is told the task of every example.", "task")
SHOWN = {"unlabelled": UNLABELLED, "labelled": LABELLED}
TRANSDUCTIVE = Badge("transductive", "Made with the unlabelled test examples.", "test")
UNKNOWN = Badge("not recorded", "The run did not record what this row was allowed to see.", "task")
REFERENCE = Badge("reference", "Bounds the others; not a merged network.", "free")


def badges(row: CandidateAggregate) -> list[Badge]:
    """Return what a candidate was allowed to see.

    The run has recorded it. Of older runs, the facts of the methods that the note names say it.

    Args:
        row: The candidate.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results, aggregate
        >>> note = "scale=0.3 of 5 chosen on the held-out examples; TaskArithmetic(scale=0.3)"
        >>> row = CandidateResult("ta", {"mnist": 0.98}, {"mnist": 10_000}, 3.2, note=note)
        >>> run = aggregate([Results(["mnist"], {"ta": row}, seed=0, versions={})])
        >>> [badge.text for badge in badges(run.candidates["ta"])]
        ['data-free', 'chosen on held-out']
    """
    if row.bound:
        return [REFERENCE]
    seen = _in_note(row.note) if row.seen is None else row.seen
    chosen = [CHOSEN] * (bool(row.searched) or "chosen on the held-out" in row.note)
    told = [TOLD] * ("task" in (seen or ()))
    if row.transductive:
        return [TRANSDUCTIVE, *chosen, *told]
    if seen is None:
        return [UNKNOWN, *chosen]
    shown = [SHOWN[what] for what in seen if what in SHOWN]
    return [*(shown or [FREE]), *chosen, *told]


def _in_note(note: str) -> tuple[str, ...] | None:
    """Return what the note of an older run says, as in "Surgery(); sees 9 unlabelled images"."""
    names = re.findall(r"\b([A-Z]\w*)\(", note)
    if not names or any(name not in _known() for name in names):
        return None
    of_each = [shown_to(_known()[name]) or () for name in names]
    told = ("task",) if "is told the task" in note else ()
    sees = ("unlabelled",) if re.search(r"\bsees \d+ unlabelled", note) else ()
    return tuple(dict.fromkeys([*(what for seen in of_each for what in seen), *sees, *told]))


@cache
def _known() -> dict[str, SimpleNamespace]:
    """Return the facts of all methods and transforms, by the name of their class."""
    methods: dict[str, Any] = dict(registered(Method))  # type: ignore[type-abstract]
    transforms: dict[str, Any] = dict(registered(Transform))  # type: ignore[type-abstract]
    found = {**methods, **transforms}
    return {name: SimpleNamespace(facts=kind.facts) for name, kind in found.items()}
