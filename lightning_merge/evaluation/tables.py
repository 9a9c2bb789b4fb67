"""Tables of candidates by tasks: markdown for files, rich for the terminal."""

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lightning_merge.evaluation.results import (
    Aggregate,
    CandidateAggregate,
    CandidateResult,
    Results,
    Spread,
)

AVERAGE = "average"
TRANSDUCTIVE = "†"


def markdown(results: Results | Aggregate) -> str:
    """The table of a results.md: percent, one decimal, tasks then average.

    The best merged candidate of each column is bold (all of them where the printed numbers
    tie). References are italic, transductive candidates bear a dagger; neither is ever bold.
    Sample counts close the table; protocol, notes, seed, versions and command follow it.

    Args:
        results: One run, or several by :func:`~lightning_merge.evaluation.results.aggregate`,
            whose cells read ``mean ± standard deviation``.
    """
    columns = [*results.tasks, AVERAGE]
    best = _best(results)
    lines = [_line(["candidate", *columns]), _line([":--", *["--:"] * len(columns)])]
    for candidate in results.candidates.values():
        name = f"*{_name(candidate)}*" if candidate.bound else _name(candidate)
        cells = (
            f"**{cell}**" if (candidate.name, column) in best else cell
            for column, cell in zip(columns, _cells(candidate, results.tasks), strict=True)
        )
        lines.append(_line([name, *cells]))
    lines.append(_line(["samples", *_samples(results), ""]))
    return "\n".join([*lines, "", *_legend(results), "", *_notes(results), *_origin(results), ""])


def rich_table(
    results: Results | Aggregate, *, width: int = 100, details: str = "results.md"
) -> Table:
    """The same table for a terminal, bold, italic and dagger as in :func:`markdown`.

    Where the tasks do not fit side by side only the average is shown, and the caption
    names the file that has the rest.

    Args:
        results: One run, or several aggregated.
        width: Columns of the terminal.
        details: File that holds the table of every task.
    """
    columns = [*results.tasks, AVERAGE]
    rows = {name: _cells(row, results.tasks) for name, row in results.candidates.items()}
    room = _room(results, columns, rows.values(), width)
    shown = slice(-1, None) if room is None else slice(None)
    best = _best(results)
    table = Table(box=SIMPLE_HEAD, caption=_caption(results, details if room is None else None))
    table.add_column("candidate", overflow="fold")
    for column in columns[shown]:
        table.add_column(Text(column), justify="right", overflow="fold", max_width=room)
    for name, candidate in results.candidates.items():
        cells = (
            Text(cell, style="bold" if (name, column) in best else "")
            for column, cell in zip(columns[shown], rows[name][shown], strict=True)
        )
        table.add_row(Text(_name(candidate)), *cells, style="dim italic" if candidate.bound else "")
    return table


def _name(candidate: CandidateResult | CandidateAggregate) -> str:
    return candidate.name + (f" {TRANSDUCTIVE}" if candidate.transductive else "")


def _cells(candidate: CandidateResult | CandidateAggregate, tasks: Sequence[str]) -> list[str]:
    values = [*(candidate.accuracy[task] for task in tasks), candidate.average]
    return [_percent(value) for value in values]


def _percent(value: float | Spread) -> str:
    if isinstance(value, Spread):
        return f"{100 * value.mean:.1f} ± {100 * value.std:.1f}"
    return f"{100 * value:.1f}"


def _best(results: Results | Aggregate) -> set[tuple[str, str]]:
    """Pairs (candidate, column) to print bold, compared as printed."""
    columns = [*results.tasks, AVERAGE]
    printed = {
        name: [float(cell.split()[0]) for cell in _cells(candidate, results.tasks)]
        for name, candidate in results.candidates.items()
        if not (candidate.bound or candidate.transductive)
    }
    highest = [max(column) for column in zip(*printed.values(), strict=True)]
    return {
        (name, column)
        for name, values in printed.items()
        for column, value, top in zip(columns, values, highest, strict=False)
        if value == top
    }


def _samples(results: Results | Aggregate) -> list[str]:
    """Test images by task, as a range where candidates or seeds differ."""

    def span(task: str) -> str:
        counts: list[int] = []
        for candidate in results.candidates.values():
            count = candidate.samples[task]
            counts.extend(count if isinstance(count, tuple) else (count,))
        low, high = min(counts), max(counts)
        return str(low) if low == high else f"{low}-{high}"

    return [span(task) for task in results.tasks]


def _legend(results: Results | Aggregate) -> Iterable[str]:
    yield "Accuracy on test images in percent; the average counts every task alike."
    if isinstance(results, Aggregate):
        seeds = ", ".join(map(str, results.seeds))
        yield f"Mean ± sample standard deviation over the seeds {seeds}."
    yield "Bold: the best merged candidate of a column."
    rows = results.candidates.values()
    if any(row.bound for row in rows):
        yield "Italic: references that bound the others, not merged networks; never bold."
    if any(row.transductive for row in rows):
        yield f"{TRANSDUCTIVE}: transductive, made with the unlabelled test images; never bold."


def _notes(results: Results | Aggregate) -> list[str]:
    rows = [f"`{name}`: {row.note}" for name, row in results.candidates.items() if row.note]
    notes = [f"- {' '.join(note.split())}" for note in (*rows, *results.notes)]
    return [*notes, ""] if notes else []


def _origin(results: Results | Aggregate) -> Iterable[str]:
    seeds = results.seeds if isinstance(results, Aggregate) else [results.seed]
    yield f"- {'Seeds' if len(seeds) > 1 else 'Seed'}: {', '.join(map(str, seeds))}"
    yield f"- Versions: {', '.join(f'{key} {value}' for key, value in results.versions.items())}"
    if results.command:
        yield f"- Command: `{results.command}`"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _room(
    results: Results | Aggregate,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    width: int,
) -> int | None:
    """Largest width of a column with which all columns fit; None if numbers would break."""
    padding = 3  # rich's, per column, and one more at the edge
    names = max(len("candidate"), *(len(_name(row)) for row in results.candidates.values()))
    number = max(len(cell) for cells in rows for cell in cells)
    left = width - 1 - (names + padding) - padding * len(columns)
    headings = [max(len(column), number) for column in columns]
    candidates = range(max(headings), number - 1, -1)
    return next((cap for cap in candidates if sum(min(h, cap) for h in headings) <= left), None)


def _caption(results: Results | Aggregate, details: str | None) -> str:
    parts = ["accuracy in percent"]
    if details is not None:
        parts.append(f"each of the {len(results.tasks)} tasks in {details}")
    rows = results.candidates.values()
    if any(row.bound for row in rows):
        parts.append("italic: reference")
    if any(row.transductive for row in rows):
        parts.append(f"{TRANSDUCTIVE}: made with unlabelled test images")
    return "; ".join(parts)
