"""The words of a page: its sentence, its three numbers, warnings, and how to do it again."""

from collections.abc import Iterator
from typing import Any

from lightning_merge.evaluation.candidates import BASE, EXPERTS, MULTI_TASK
from lightning_merge.evaluation.derived import NORMALISED
from lightning_merge.evaluation.legend import own_split_note
from lightning_merge.evaluation.page.study import Study
from lightning_merge.evaluation.page.table import ends, percent, signed
from lightning_merge.evaluation.results import AVERAGE

WIDE = 0.03
"""Half a 95 % interval beyond which a test set is called small."""
ENOUGH_SEEDS = 5


def sentence(study: Study) -> str:
    """Return what was found, in one sentence.

    Args:
        study: The runs.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> from lightning_merge.evaluation.page.runs import Run
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> found = Study.of([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))])
        >>> sentence(found)
        'ties merges the experts of 1 task.'
    """
    rows, best = study.table.candidates.values(), study.best
    merged = [row for row in rows if not row.bound]
    inside = len(study.table.tasks) - len(study.table.out_of_domain)
    tasks = f"{inside} task{'s' * (inside != 1)}"
    if not merged:
        return f"No merged network was measured on {tasks}."
    tied = [r.name for r in merged if study.is_best(r.name, AVERAGE) and r.name != best.name]
    text = f"Of {len(merged)} merged networks on {tasks}, {best.name} has the highest average"
    if len(merged) == 1:
        text = f"{best.name} merges the experts of {tasks}"
    if not tied:
        return text + "."
    more = f" and {len(tied) - 4} more" if len(tied) > 4 else ""
    return f"{text}; the test examples do not tell it from {', '.join(tied[:4])}{more}."


def plain_best(study: Study) -> str:
    """Return the best network that is one set of weights, if the best of all is not.

    Args:
        study: The runs.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> from lightning_merge.evaluation.page.runs import Run
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> found = Study.of([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))])
        >>> plain_best(found)  # the best is one set of weights
        ''
    """

    def costs(row: Any) -> bool:
        return row.extra_parameters > 0 or row.inference_cost > 1

    rows = study.table.candidates.values()
    plain = [row for row in rows if not (row.bound or row.transductive or costs(row))]
    if not plain or not costs(study.best):
        return ""
    top = max(plain, key=lambda row: row.average.mean)
    return (
        f"{study.best.name} is more than one set of weights. Of those that are one, {top.name} is "
        f"the best: {percent(top.average)} %."
    )


def numbers(study: Study) -> list[dict[str, str]]:
    """Return the three numbers of the page: value, what it is, and its interval.

    Args:
        study: The runs.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> from lightning_merge.evaluation.page.runs import Run
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> found = Study.of([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))])
        >>> [(number["value"], number["what"]) for number in numbers(found)]
        [('98.0 %', 'average accuracy of ties')]
    """
    best = study.best
    found = [{
        "value": f"{100 * best.average.mean:.1f} %", "what": f"average accuracy of {best.name}",
        "interval": ends(study.interval(best.name, AVERAGE)),
    }]  # fmt: skip
    if (share := best.figures.get(NORMALISED)) is not None:
        found.append({
            "value": f"{100 * share.mean:.1f} %", "what": "of the individual experts, mean by task",
            "interval": ends(study.interval(best.name, NORMALISED)),
        })  # fmt: skip
    references = [name for name in (BASE, MULTI_TASK) if name in study.names]
    gains = [(name, study.difference(best.name, name, AVERAGE)) for name in references]
    told = [(name, gain) for name, gain in gains if gain is not None]
    if told:
        (name, gain), *more = told
        where = study.evidence.compared.get(name, {}).get(best.name, {}).get(AVERAGE)
        beside = "".join(f"; {signed(100 * g)} against {n}" for n, g in more)
        found.append({
            "value": signed(100 * gain), "what": f"points against {name}{beside}",
            "interval": ends(where.interval, sign=True) if where else "",
        })  # fmt: skip
    return found


def warnings(study: Study) -> Iterator[tuple[str, str]]:
    """Yield what a reader has to know: a heading, and a sentence.

    Args:
        study: The runs.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> from lightning_merge.evaluation.page.runs import Run
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> found = Study.of([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))])
        >>> [what for what, _ in warnings(found)]
        ['One seed', 'No intervals', 'No experts', 'No hashes']
    """
    table = study.table
    for leak in study.leaked:
        yield "Leak", f"{leak.words}. Rows: {', '.join(leak.rows)}."
    if rows := [row.name for row in table.candidates.values() if row.transductive]:
        yield "Transductive", f"Made with the unlabelled test examples: {', '.join(rows)}."
    if table.own_split:
        yield "Own split", f"{own_split_note(table.own_split)}."
    if corruption := study.runs[0].results.corruption:
        yield "Corrupted", f"All test examples are corrupted: {corruption}."
    yield from _about_seeds(len(table.seeds))
    yield from _about_sizes(study)
    if EXPERTS not in study.names:
        yield "No experts", "The individual experts were not measured; no share of them is known."
    if lacking := [run.name for run in study.runs if not run.splits]:
        yield "No hashes", f"A leak would not be seen without splits.json: {', '.join(lacking)}."


def _about_seeds(seeds: int) -> Iterator[tuple[str, str]]:
    if seeds == 1:
        yield "One seed", "Nothing is known of what another seed would change."
    elif seeds < ENOUGH_SEEDS:
        share = f"{(1 - 1 / seeds) ** 0.5:.2f}"
        yield "Few seeds", f"What {seeds} seeds add to an interval is {share} of what it should be."


def _about_sizes(study: Study) -> Iterator[tuple[str, str]]:
    """Yield which test sets are too small for close calls."""
    name, counts = study.best.name, study.best.samples
    halves = {
        task: (found.high - found.low) / 2
        for task in study.table.tasks
        if (found := study.interval(name, task)) is not None
    }
    if not halves:
        yield "No intervals", "What was answered correctly is not recorded; nothing is compared."
    wide = [f"{t} ({counts[t][0]}, ± {100 * h:.1f})" for t, h in halves.items() if h > WIDE]
    if wide:
        what = f"test examples, and half of the 95 % interval of {name} in points"
        yield "Small test sets", f"In brackets: {what}: {', '.join(wide)}."


def origin(study: Study) -> dict[str, Any]:
    """Return commands, versions, hashes and configuration.

    Args:
        study: The runs.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> from lightning_merge.evaluation.page.runs import Run
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> found = Study.of([Run("mine", Results(["mnist"], {"ties": ties}, 0, versions={}))])
        >>> origin(found)["seeds"]
        (0,)
    """
    hashes = {
        run.name: {k: v for k, v in run.record.items() if k.startswith(("file ", "head of "))}
        | {f"test examples of {task}": digest for task, digest in run.measured.items()}
        for run in study.runs
    }
    return {
        "commands": [run.results.command for run in study.runs if run.results.command],
        "versions": study.table.versions,
        "seeds": study.table.seeds,
        "hashes": hashes,
        "config": study.runs[0].config,
        "config_of": study.runs[0].name,
    }
