"""What stands around a table: how to read it, notes, and where it comes from."""

from collections.abc import Iterable, Sequence

from lightning_merge.evaluation.aggregates import Aggregate
from lightning_merge.evaluation.cells import (
    OUT_OF_DOMAIN_MARK,
    OWN_SPLIT,
    TRANSDUCTIVE,
    UNSEEN,
    Cells,
)
from lightning_merge.evaluation.derived import EXPLAINED, EXPLAINED_BESIDE


def legend(results: Aggregate, cells: Cells) -> Iterable[str]:
    r"""Yield sentences that say how to read a table.

    Args:
        results: Runs, aggregated.
        cells: Their table.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results, aggregate
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> run = aggregate([Results(["mnist"], {"ties": ties}, seed=0, versions={})])
        >>> print(*legend(run, Cells(run)), sep="\n")
        Accuracy on test examples in percent; the average counts every task alike.
        Bold: the best merged candidate of a column.
    """
    yield "Accuracy on test examples in percent; the average counts every task alike."
    yield from _uncertainty(results, cells)
    for column, found in cells.figures.items():
        if column in EXPLAINED:
            text, blank = EXPLAINED[column]
            yield text + (blank if "" in found.values() else "")
    for name, text in EXPLAINED_BESIDE.items():
        if any(column.endswith(f" {name}") for column in cells.figures):
            yield text
    yield from _marks(results)
    if cells.sizes:
        yield (
            "Extra parameters: numbers stored beside those of one network, 32 bits of masks being "
            "one. Passes: what an image takes, in passes of the base network."
        )
    if cells.efforts:
        yield (
            "Seconds and peak memory: of making the candidate; memory beyond what the process, or "
            "its device, held before."
        )
    if "update MiB" in cells.efforts:
        yield "Update: size of the values that differ from the base's, without their positions."
    if any(row.transductive for row in results.candidates.values()):
        yield f"{TRANSDUCTIVE}: transductive, made with the unlabelled test examples; never bold."


def _uncertainty(results: Aggregate, cells: Cells) -> Iterable[str]:
    """Yield what spreads, intervals, differences and bold cells say."""
    rows = results.candidates.values()
    several, intervals = len(results.seeds) > 1, any(row.intervals for row in rows)
    if several:
        seeds = ", ".join(map(str, results.seeds))
        yield f"Mean ± sample standard deviation over the seeds {seeds}."
    if cells.intervals and not several:
        yield "In brackets: 95 % interval, by bootstrap over test examples."
    if cells.intervals and several:
        share = (1 - 1 / len(results.seeds)) ** 0.5
        yield (
            "In brackets: 95 % interval, by bootstrap over test examples and seeds; with "
            f"{len(results.seeds)} seeds, what seeds add to it is {share:.2f} of what it should be."
        )
    if intervals:
        yield (
            "p of a difference: two-sided, by the same bootstrap; never below "
            + ("that of a t test of the seeds' differences, or below " if several else "")
            + "that of a sign test in which all images that tell the two apart are for one of them."
        )
    if results.against is not None:
        yield (
            f"Above {results.against}: difference of the averages"
            + (", taken run by run before mean and deviation" if several else "")
            + (", paired by image." if intervals else ".")
        )
    if results.against is not None and intervals:
        yield (
            f"Better or worse than {results.against}: p below 0.05, corrected by Holm over all "
            "other rows, references included, for each column apart."
        )
    yield "Bold: the best merged candidate of a column" + (
        ", and all whose paired difference from it cannot be told from zero: p of 0.05 or more, "
        "corrected by Holm over the column's other merged candidates. The same images have picked "
        "the best, so one as good can lack it."
        if intervals
        else "."
    )


def _marks(results: Aggregate) -> Iterable[str]:
    """Yield what the marks of tasks and references mean."""
    if results.unseen:
        yield (
            f"{UNSEEN.capitalize()}: of these tasks nothing but their frozen heads was used to "
            "make or choose a merged network. Heads are made from the base's features of labelled "
            "train images, or from prompts."
        )
    if results.out_of_domain:
        yield (
            f"{OUT_OF_DOMAIN_MARK.capitalize()}: data sets without an expert, measured by heads "
            "made from the base's features of their labelled train images, or from prompts; "
            "nothing else of them was used, and they count in no other average. The individual "
            "experts have their mean there."
        )
    if results.own_split:
        yield (
            f"{OWN_SPLIT}: published undivided, and divided by this package; published experts "
            "have trained on some of these test examples. Give the published lists as data.splits."
        )
    if any(row.bound for row in results.candidates.values()):
        yield "Italic: references that bound the others, not merged networks; never bold."


def notes(results: Aggregate) -> list[str]:
    """Return the notes of candidates and runs as a list in markdown.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results, aggregate
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, 3.2, "scale 0.3")
        >>> notes(aggregate([Results(["mnist"], {"ties": ties}, seed=0, versions={})]))
        ['- `ties`: scale 0.3', '']
    """
    rows = [f"`{name}`: {row.note}" for name, row in results.candidates.items() if row.note]
    lines = [f"- {' '.join(note.split())}" for note in (*rows, *results.notes)]
    return [*lines, ""] if lines else []


def origin(results: Aggregate) -> Iterable[str]:
    """Yield seeds, versions and command as a list in markdown.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results, aggregate
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> run = Results(["mnist"], {"ties": ties}, seed=0, versions={"torch": "2.6.0"})
        >>> [*origin(aggregate([run]))]
        ['- Seed: 0', '- Versions: torch 2.6.0']
    """
    seeds = ", ".join(map(str, results.seeds))
    yield f"- {'Seeds' if len(results.seeds) > 1 else 'Seed'}: {seeds}"
    yield f"- Versions: {', '.join(f'{key} {value}' for key, value in results.versions.items())}"
    if results.command:
        yield f"- Command: `{results.command}`"


def caption(results: Aggregate, cells: Cells, details: str, shown: int) -> str:
    """Return the caption of a table in the terminal.

    Args:
        results: Runs, aggregated.
        cells: Their table.
        details: File with the accuracies of all tasks.
        shown: How many of the tasks the table has.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results, aggregate
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> run = aggregate([Results(["mnist"], {"ties": ties}, seed=0, versions={})])
        >>> caption(run, Cells(run), "results.md", shown=0)
        'accuracy in percent; each of the 1 tasks in results.md'
    """
    rows = results.candidates.values()
    parts = ["accuracy in percent"]
    if cells.intervals:
        parts[0] += " [95 % interval]"
    tasks = len(results.tasks)
    if shown < tasks:
        which = f"{tasks - shown} more of the" if shown else "each of the"
        parts.append(f"{which} {tasks} tasks in {details}")
    if results.unseen:
        parts.append(f"{UNSEEN}: only the frozen heads of these tasks were used")
    if results.out_of_domain:
        parts.append(f"{OUT_OF_DOMAIN_MARK}: data sets without an expert")
    if results.own_split:
        parts.append(f"{OWN_SPLIT} {own_split_note(results.own_split)}")
    if any(row.bound for row in rows):
        parts.append("italic: reference")
    if any(row.transductive for row in rows):
        parts.append(f"{TRANSDUCTIVE}: made with unlabelled test examples")
    return "; ".join(parts)


def own_split_note(tasks: Sequence[str]) -> str:
    """Return a caveat for numbers of tasks with a test split made by this package.

    Examples:
        >>> own_split_note(["eurosat"])
        'eurosat: own division, published experts know some test examples'
    """
    return f"{', '.join(tasks)}: own division, published experts know some test examples"
