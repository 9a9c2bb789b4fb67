"""Tables of candidates by tasks: markdown for files, rich for the terminal."""

from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lightning_merge.evaluation.aggregates import Aggregate, CandidateAggregate, Spread
from lightning_merge.evaluation.derived import DISTANCE, DISTANCE_OUT, EXPLAINED
from lightning_merge.evaluation.results import CandidateResult, Results, averaged_tasks

TRANSDUCTIVE = "†"
UNSEEN, OUT_OF_DOMAIN = "unseen", "out of domain"
OWN_SPLIT = "*"

Row = CandidateResult | CandidateAggregate


def markdown(results: Results | Aggregate) -> str:
    """Return the table of a results.md: percent, one decimal, tasks then average.

    Columns of unseen tasks and of data sets out of domain are labelled. Two more averages cover
    the seen and the unseen tasks, and one what is out of domain, which counts in no other. Tasks
    with a test split made by this package have an asterisk.

    The best merged candidate of each column is bold (all of them if the printed numbers tie).
    References are italic, transductive candidates have a dagger; neither is ever bold. Sample
    counts close the table; protocol, notes, seed, versions and command follow it.

    Costs stand beside accuracy: extra parameters and passes per image if a candidate differs from
    a plain network, seconds and peak memory if memory was measured. Before them stand the
    differences from one candidate, if runs were aggregated against it.

    Args:
        results: One run, or several by :func:`~lightning_merge.evaluation.aggregates.aggregate`,
            whose cells read ``mean ± standard deviation``.

    Examples:
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> print(markdown(Results(["mnist"], {"ties": ties}, seed=0, versions={})))
        | candidate | mnist | average |
        | :-- | --: | --: |
        | ties | **98.0** | **98.0** |
        | samples | 10000 |  |
        ...
    """
    columns, best = _columns(results), _best(results)
    more = {
        **_figure_columns(results),
        **_difference(results),
        **_size_columns(results),
        **_effort_columns(results),
    }
    header = [*columns, *more]
    rows = []
    for candidate in results.candidates.values():
        name = f"*{_name(candidate)}*" if candidate.bound else _name(candidate)
        cells = (
            f"**{cell}**" if (candidate.name, column) in best else cell
            for column, cell in zip(columns, _cells(candidate, results), strict=True)
        )
        rows.append([name, *cells, *(column[candidate.name] for column in more.values())])
    samples = _samples(results)
    rows.append(["samples", *samples, *[""] * (len(header) - len(samples))])
    table = markdown_table(["candidate", *header], rows, [":--", *["--:"] * len(header)])
    return "\n".join([table, "", *_legend(results), "", *_notes(results), *_origin(results), ""])


def rich_table(
    results: Results | Aggregate, *, width: int = 100, details: str = "results.md"
) -> Table:
    """Return the same table for a terminal, bold, italic and dagger as in :func:`markdown`.

    If the tasks do not fit side by side, the averages and figures alone are shown, and the caption
    names the file with the rest; otherwise figures are left to that file. Seconds and memory are
    always left to it.

    Args:
        results: One run, or several aggregated.
        width: Columns of the terminal.
        details: File with the table of every task.

    Examples:
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> table = rich_table(Results(["mnist"], {"ties": ties}, seed=0, versions={}))
        >>> [str(column.header) for column in table.columns]
        ['candidate', 'mnist', 'average']
    """
    more = {**_difference(results), **_size_columns(results)}
    room = _room(results, more, width)
    if room is None:
        more = {**_figure_columns(results), **more}
    columns, rows = _with(results, more)
    shown = slice(len(results.tasks) if room is None else 0, None)
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


def own_split_note(tasks: Sequence[str]) -> str:
    """Return a caveat for numbers of tasks with a test split made by this package.

    Examples:
        >>> own_split_note(["eurosat"])
        'eurosat: own division, published experts know some test images'
    """
    return f"{', '.join(tasks)}: own division, published experts know some test images"


def _name(candidate: Row) -> str:
    return candidate.name + (f" {TRANSDUCTIVE}" if candidate.transductive else "")


def _columns(results: Results | Aggregate) -> list[str]:
    tasks = [
        task
        + (f" {OWN_SPLIT}" if task in results.own_split else "")
        + (f" ({UNSEEN})" if task in results.unseen else "")
        + (f" ({OUT_OF_DOMAIN})" if task in results.out_of_domain else "")
        for task in results.tasks
    ]
    return [*tasks, *averaged_tasks(results.tasks, results.unseen, results.out_of_domain)]


def _cells(candidate: Row, results: Results | Aggregate) -> list[str]:
    averages: Mapping[str, float | Spread] = (
        candidate.averages(results.unseen, results.out_of_domain)
        if isinstance(candidate, CandidateResult)
        else candidate.averages
    )
    values = [*(candidate.accuracy[task] for task in results.tasks), *averages.values()]
    return [_percent(value) for value in values]


def _figure_columns(results: Results | Aggregate) -> dict[str, dict[str, str]]:
    """Return cells with the figures that follow from accuracies, blank where there is none."""
    figures = {name: _figures(results, name) for name in results.candidates}
    columns = next(iter(figures.values()))
    return {
        column: {
            name: "" if (value := row[column]) is None else _figure(column, value)
            for name, row in figures.items()
        }
        for column in columns
    }


def _figure(column: str, value: float | Spread) -> str:
    """Return a figure in percent, or a distance with three significant digits."""
    if column not in (DISTANCE, DISTANCE_OUT):
        return _percent(value)
    return f"{value.mean:.3g} ± {value.std:.2g}" if isinstance(value, Spread) else f"{value:.3g}"


def _figures(results: Results | Aggregate, name: str) -> Mapping[str, float | Spread | None]:
    return (
        results.figures(name) if isinstance(results, Results) else results.candidates[name].figures
    )


def _difference(results: Results | Aggregate) -> dict[str, dict[str, str]]:
    """Return cells with each candidate's difference from the reference; empty without one."""
    if isinstance(results, Results) or results.against is None:
        return {}
    cells = {
        name: f"{round(100 * row.difference.mean, 1) + 0.0:+.1f} ± {100 * row.difference.std:.1f}"
        if row.difference
        else ""
        for name, row in results.candidates.items()
    }
    return {f"above {results.against}": cells}


def _size_columns(results: Results | Aggregate) -> dict[str, dict[str, str]]:
    """Return cells with the size and inference cost of candidates; empty if all are plain."""
    rows = results.candidates.values()
    if not any(row.extra_parameters or row.inference_cost != 1 for row in rows):
        return {}
    return {
        "extra parameters": {r.name: "" if r.bound else _short(r.extra_parameters) for r in rows},
        "passes": {r.name: "" if r.bound else f"{r.inference_cost:.2f}" for r in rows},
    }


def _effort_columns(results: Results | Aggregate) -> dict[str, dict[str, str]]:
    """Return cells with the cost of making candidates; empty if memory was not measured."""
    rows = results.candidates.values()
    if all(row.peak_memory is None for row in rows):
        return {}
    return {
        "seconds": {r.name: "" if r.bound else _amount(r.seconds) for r in rows},
        "peak MiB": {
            r.name: "" if r.peak_memory is None else _amount(r.peak_memory, 2**20) for r in rows
        },
    }


def _short(number: int) -> str:
    """Return a number with one decimal and a unit, such as 1.2M."""
    for unit, size in {"G": 10**9, "M": 10**6, "k": 10**3}.items():
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _amount(value: float | Spread, unit: int = 1) -> str:
    if isinstance(value, Spread):
        return f"{value.mean / unit:.1f} ± {value.std / unit:.1f}"
    return f"{value / unit:.1f}"


def _percent(value: float | Spread) -> str:
    if isinstance(value, Spread):
        return f"{100 * value.mean:.1f} ± {100 * value.std:.1f}"
    return f"{100 * value:.1f}"


def _best(results: Results | Aggregate) -> set[tuple[str, str]]:
    """Return pairs (candidate, column) to print in bold, compared as printed."""
    columns = _columns(results)
    printed = {
        name: [float(cell.split()[0]) for cell in _cells(candidate, results)]
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
    """Return numbers of test images by task, as a range if candidates or seeds differ."""

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
        if results.against is not None:
            yield (
                f"Above {results.against}: difference of the averages of the domain, taken run by "
                "run before mean and deviation."
            )
    for column, cells in _figure_columns(results).items():
        text, blank = EXPLAINED[column]
        yield text + (blank if "" in cells.values() else "")
    yield "Bold: the best merged candidate of a column."
    if results.unseen:
        yield (
            f"{UNSEEN.capitalize()}: of these tasks nothing but their frozen heads was used to "
            "make or choose a merged network."
        )
    if results.out_of_domain:
        yield (
            f"{OUT_OF_DOMAIN.capitalize()}: data sets without an expert, measured by heads of the "
            "base's features or of prompts; nothing else of them was used, and they count in no "
            "other average. The individual experts have their mean there."
        )
    if results.own_split:
        yield (
            f"{OWN_SPLIT}: published undivided, and divided by this package; published experts "
            "have trained on some of these test images. Give the published lists as data.splits."
        )
    rows = results.candidates.values()
    if any(row.bound for row in rows):
        yield "Italic: references that bound the others, not merged networks; never bold."
    if _size_columns(results):
        yield (
            "Extra parameters: numbers stored beside those of one network, 32 bits of masks being "
            "one. Passes: what an image takes, in passes of the base network."
        )
    if _effort_columns(results):
        yield (
            "Seconds and peak memory: of making the candidate; memory beyond what the process, or "
            "its device, held before."
        )
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


def _with(
    results: Results | Aggregate, more: Mapping[str, Mapping[str, str]]
) -> tuple[list[str], dict[str, list[str]]]:
    """Return the columns of tasks, averages and more, and the cells of every candidate."""
    rows = {
        name: [*_cells(row, results), *(column[name] for column in more.values())]
        for name, row in results.candidates.items()
    }
    return [*_columns(results), *more], rows


def _room(
    results: Results | Aggregate, more: Mapping[str, Mapping[str, str]], width: int
) -> int | None:
    """Return the largest column width at which all columns fit; None if numbers would break."""
    columns, rows = _with(results, more)
    padding = 3  # rich's, per column, and one more at the edge
    names = max(len("candidate"), *(len(_name(row)) for row in results.candidates.values()))
    number = max(len(cell) for cells in rows.values() for cell in cells)
    left = width - 1 - (names + padding) - padding * len(columns)
    headings = [max(len(column), number) for column in columns]
    candidates = range(max(headings), number - 1, -1)
    return next((cap for cap in candidates if sum(min(h, cap) for h in headings) <= left), None)


def _caption(results: Results | Aggregate, details: str | None) -> str:
    parts = ["accuracy in percent"]
    if details is not None:
        parts.append(f"each of the {len(results.tasks)} tasks in {details}")
    rows = results.candidates.values()
    if results.unseen:
        parts.append(f"{UNSEEN}: only the frozen heads of these tasks were used")
    if results.out_of_domain:
        parts.append(f"{OUT_OF_DOMAIN}: data sets without an expert")
    if results.own_split:
        parts.append(f"{OWN_SPLIT} {own_split_note(results.own_split)}")
    if any(row.bound for row in rows):
        parts.append("italic: reference")
    if any(row.transductive for row in rows):
        parts.append(f"{TRANSDUCTIVE}: made with unlabelled test images")
    return "; ".join(parts)
