"""Tables of candidates by tasks: markdown for files, rich for the terminal."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lightning_merge.core.checks import require_choice
from lightning_merge.evaluation.aggregates import Aggregate, CandidateAggregate, aggregate
from lightning_merge.evaluation.cells import TRANSDUCTIVE, Cells
from lightning_merge.evaluation.legend import caption, legend, notes, origin
from lightning_merge.evaluation.results import Results

WIDE, TIGHT = 3, 1
"""What rich puts around a column, and at least between two."""


def markdown(
    results: Results | Aggregate, *, intervals: str = "averages", columns: str = "all"
) -> str:
    """Return the table of a results.md: percent, one decimal, tasks then average.

    Columns of unseen tasks and of data sets out of domain are labelled. Two more averages cover
    the seen and the unseen tasks, and one what is out of domain, which counts in no other. Tasks
    with a test split made by this package have an asterisk.

    The best merged candidate of each column is bold, and so are those whose paired difference from
    it cannot be told from zero; where no interval is known, those that tie as printed.
    References are italic, transductive candidates have a dagger; neither is ever bold. Sample
    counts close the table; protocol, notes, seed, versions and command follow it.

    Costs stand beside accuracy: extra parameters and passes per image if a candidate differs from
    a plain network, seconds and peak memory if memory was measured. Before them stand the
    differences from one candidate, if runs were aggregated against it.

    Args:
        results: One run, or several by :func:`~lightning_merge.evaluation.aggregates.aggregate`,
            whose cells read ``mean ± standard deviation``.
        intervals: Columns with an interval beside the mean: "averages", "all" or "none".
        columns: "all", or "averages", without those of single tasks and without sample counts.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> print(markdown(Results(["mnist"], {"ties": ties}, seed=0, versions={})))
        | candidate | mnist | average |
        | :-- | --: | --: |
        | ties | **98.0** | **98.0** |
        | samples | 10000 |  |
        ...
    """
    require_choice(("all", "averages"), columns=columns)
    results = _aggregated(results)
    cells = Cells(results, intervals)
    more = {**cells.figures, **cells.differences, **cells.sizes, **cells.efforts}
    averages = len(results.tasks) if columns == "averages" else 0
    header = [*cells.columns, *more][averages:]
    rows = []
    for name, candidate in results.candidates.items():
        shown = (
            f"**{cell}**" if (name, column) in cells.best else cell
            for column, cell in zip(cells.columns, cells.rows[name], strict=True)
        )
        label = f"*{_name(candidate)}*" if candidate.bound else _name(candidate)
        row = [*shown, *(column[name] for column in more.values())]
        rows.append([label, *row[averages:]])
    if not averages:
        samples = _samples(results)
        rows.append(["samples", *samples, *[""] * (len(header) - len(samples))])
    table = markdown_table(["candidate", *header], rows, [":--", *["--:"] * len(header)])
    return "\n".join(
        [table, "", *legend(results, cells), "", *notes(results), *origin(results), ""]
    )


def rich_table(
    results: Results | Aggregate, *, width: int = 100, details: str = "results.md"
) -> Table:
    """Return the same table for a terminal, bold, italic and dagger as in :func:`markdown`.

    Where the tasks do not fit, intervals are left out first, then the space between columns, and
    names of tasks are shortened; then only the first tasks are shown, and the caption names the
    file with the others. Figures are left to that file if any task is shown, seconds and memory
    always.

    Args:
        results: One run, or several aggregated.
        width: Columns of the terminal.
        details: File with the table of every task.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> table = rich_table(Results(["mnist"], {"ties": ties}, seed=0, versions={}))
        >>> [str(column.header) for column in table.columns]
        ['candidate', 'mnist', 'average']
    """
    results = _aggregated(results)
    cells, tasks, gap, room = _layout(results, width)
    more = {**({} if tasks else cells.figures), **cells.differences, **cells.sizes}
    columns = [*cells.columns, *more]
    shown = [*range(tasks), *range(len(results.tasks), len(columns))]
    said = caption(results, cells, details, tasks)
    table = Table(box=SIMPLE_HEAD, caption=said, padding=(0, int(gap == WIDE)))
    table.add_column("candidate", overflow="fold")
    headings = _headings(columns, tasks, room) if gap == TIGHT else columns
    for column in shown:
        table.add_column(Text(headings[column]), justify="right", overflow="fold", max_width=room)
    for name, candidate in results.candidates.items():
        row = [*cells.rows[name], *(column[name] for column in more.values())]
        texts = (
            Text(row[i], style="bold" if (name, columns[i]) in cells.best else "") for i in shown
        )
        table.add_row(Text(_name(candidate)), *texts, style="dim italic" if candidate.bound else "")
    return table


def _aggregated(results: Results | Aggregate) -> Aggregate:
    return results if isinstance(results, Aggregate) else aggregate([results])


def _name(candidate: CandidateAggregate) -> str:
    return candidate.name + (f" {TRANSDUCTIVE}" if candidate.transductive else "")


def _samples(results: Aggregate) -> list[str]:
    """Return numbers of test examples by task, as a range if candidates or seeds differ."""

    def span(task: str) -> str:
        counts = [n for row in results.candidates.values() for n in row.samples[task]]
        low, high = min(counts), max(counts)
        return str(low) if low == high else f"{low}-{high}"

    return [span(task) for task in results.tasks]


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], alignment: Sequence[str]
) -> str:
    """Return a table in markdown, with pipes in cells escaped.

    Args:
        header: Names of the columns.
        rows: Cells of every row.
        alignment: ":--", "--:" or "---" for each column.

    Examples:
        >>> print(markdown_table(["task", "accuracy"], [["mnist", "98.0"]], [":--", "--:"]))
        | task | accuracy |
        | :-- | --: |
        | mnist | 98.0 |
    """
    lines = [header, alignment, *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


class _Layout(NamedTuple):
    """What a table in the terminal has.

    Attributes:
        cells: Its cells, with or without intervals.
        tasks: How many tasks, the first ones.
        gap: Characters that a column takes beside its text.
        room: Greatest width of a column's text; None if it is not limited.
    """

    cells: Cells
    tasks: int
    gap: int
    room: int | None


def _layout(results: Aggregate, width: int) -> _Layout:
    """Return the layout that shows the most tasks, and the most of each."""
    whole, plain, every = Cells(results), Cells(results, "none"), len(results.tasks)
    options = [(whole, every, WIDE), (plain, every, WIDE)]
    options += [(plain, tasks, TIGHT) for tasks in range(every, 0, -1)]
    for cells, tasks, gap in options:
        room = _room(results, cells, width, tasks, gap)
        longest = max(map(len, cells.columns)) if gap == WIDE else 0
        if room is not None and longest <= 2 * room:
            return _Layout(cells, tasks, gap, room)
    return _Layout(whole, 0, WIDE, None)


def _room(results: Aggregate, cells: Cells, width: int, tasks: int, gap: int) -> int | None:
    """Return the largest column width at which these tasks fit; None if numbers would break."""
    more, every = {**cells.differences, **cells.sizes}, len(results.tasks)
    rows = [*(row[:tasks] + row[every:] for row in cells.rows.values())]
    rows += [[*column.values()] for column in more.values()]
    names = max(len("candidate"), *(len(_name(row)) for row in results.candidates.values()))
    number = max(len(cell) for row in rows for cell in row)
    columns = [*cells.columns[:tasks], *cells.columns[every:], *more]
    left = width - 1 - (names + gap) - gap * len(columns)
    headings = [max(len(column), number) for column in columns]
    candidates = range(max(headings), number - 1, -1)
    return next((cap for cap in candidates if sum(min(h, cap) for h in headings) <= left), None)


def _headings(columns: Sequence[str], tasks: int, room: int | None) -> list[str]:
    """Return the headings, those of tasks shortened to two lines of a narrow column.

    What the names of all tasks have in common at their beginning is left out first.
    """
    names, others = columns[:tasks], columns[tasks:]
    if room is None or max(map(len, columns)) <= room:
        return [*columns]
    starts = (names[0][: i + 1] for i, sign in enumerate(names[0]) if sign == "_" and tasks > 1)
    common = [start for start in starts if all(name.startswith(start) for name in names)]
    bare = [name.removeprefix(common[-1] if common else "") for name in names]
    short = [name if len(name) <= 2 * room else f"{name[: 2 * room - 1]}…" for name in bare]
    told_apart = len(set(short)) == len(short)
    return [*(short if told_apart else bare), *(n.replace("average", "avg") for n in others)]
