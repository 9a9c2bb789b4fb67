"""The page: everything about some runs in one HTML file that loads nothing."""

import base64
import csv
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_merge import __version__
from lightning_merge.core.checkpoints.files import write_text
from lightning_merge.evaluation.cells import Cells
from lightning_merge.evaluation.legend import legend
from lightning_merge.evaluation.page import charts, story, table
from lightning_merge.evaluation.page.leaks import leaks, refuse
from lightning_merge.evaluation.page.runs import Run, check_same_images
from lightning_merge.evaluation.page.seen import badges
from lightning_merge.evaluation.page.study import Study

if TYPE_CHECKING:
    from jinja2 import Template

FILE = "report.html"
"""Name of the page in a run folder."""
LIMIT = 2_000_000
"""Bytes that a page may have."""
WIDEST = 1400  # pixels of a picture


def page(runs: Sequence[Run], against: str | None = None, allow_leak: bool = False) -> str:
    """Return the page of a run, or of several seeds of one configuration.

    Args:
        runs: The runs.
        against: Row to compare with at first; by default the best merged one.
        allow_leak: Mark rows that leaks go into instead of refusing them.

    Raises:
        InputError: The runs are not comparable, were measured on other test examples, or leak.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> text = page([Run("mine", Results(["mnist"], {"ties": ties}, seed=0, versions={}))])
        >>> "<h1>ties merges the experts of 1 task.</h1>" in text
        True
    """
    check_same_images(runs)
    refuse(found := leaks(runs), allow_leak)
    study = Study.of(runs, against, found)
    content = _content(study)
    text = _filled(content)
    left = LIMIT - len(text.encode("utf-8", "surrogateescape"))
    for file, owner in [(file, run.name) for run in runs for file in run.figures]:
        picture = _picture(file, owner)
        size = len(picture["data"]) + 500
        if size < left:
            left -= size
            content["pictures"].append(picture)
        else:
            content["left_out"].append(f"{file.name} of {owner}")
    return _filled(content) if content["pictures"] or content["left_out"] else text


def write_page(folder: Path) -> Path:
    """Write report.html into the folder of a finished run, and return its path.

    Leaks are marked rather than refused: the run has been made.

    Args:
        folder: The run folder.

    Examples:
        >>> from lightning_merge.evaluation import CandidateResult, Results
        >>> ties = CandidateResult("ties", {"mnist": 0.98}, {"mnist": 10_000}, seconds=3.2)
        >>> run = Results(["mnist"], {"ties": ties}, seed=0, versions={})
        >>> write_page(run.to_json("run/results.json").parent).name
        'report.html'
    """
    file = folder / FILE
    write_text(file, page([Run.read(folder)], allow_leak=True))
    return file


def _content(study: Study) -> dict[str, Any]:
    """Return everything that the template shows, without pictures."""
    columns = table.columns(study)
    rows = table.rows(study, columns)
    content: dict[str, Any] = {
        "title": f"{study.best.name}: report of {', '.join(run.name for run in study.runs)}",
        "version": __version__,
        "sentence": story.sentence(study),
        "plain": story.plain_best(study),
        "best": study.best.name,
        "badges": badges(study.best),
        "numbers": story.numbers(study),
        "columns": columns,
        "rows": rows,
        "against": study.against,
        "several": len(study.runs) > 1,
        "comparing": len(rows) > 1,
        "deltas": any(cell.delta for row in rows for cell in row["cells"]),
        "legend": [*legend(study.table, Cells(study.table))],
        "tracks": charts.tracks(study),
        "in_and_out": charts.in_and_out(study),
        "against_cost": charts.against_cost(study),
        "searches": charts.searches(study),
        "training": charts.training(study),
        "pictures": [],
        "left_out": [],
        "warnings": [*story.warnings(study)],
        "notes": study.table.notes,
        "origin": story.origin(study),
        "data": _data(study, columns),
    }
    return content | {"sections": [*_sections(content, study)]}


def _sections(content: dict[str, Any], study: Study) -> list[tuple[str, str]]:
    """Return the parts that there are, for the list at the top."""
    shown = ("in_and_out", "against_cost", "searches")
    inside = content["training"] or any(run.figures for run in study.runs)
    return [
        ("table", "Table"),
        ("tasks", "Tasks"),
        *[("charts", "Trade-offs")] * any(content[key] for key in shown),
        *[("inside", "Inside")] * bool(inside),
        ("warnings", f"Warnings ({len(content['warnings'])})"),
        ("again", "Again"),
    ]


def _data(study: Study, columns: Sequence[table.Column]) -> dict[str, Any]:
    """Return what the script of the page reads."""
    return {
        "rows": study.names,
        "compared": study.compared,
        "against": study.against,
        "pairs": [*table.pairs(study)],
        "results": [run.results.content() for run in study.runs],
        "csv": _csv(study, columns),
    }


def _csv(study: Study, columns: Sequence[table.Column]) -> str:
    """Return the table with one line for each row and column, accuracies as fractions."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["candidate", "column", "mean", "std", "low", "high"])
    for name in study.names:
        for column in columns:
            spread = study.value(name, column.key)
            if spread is not None:
                ends = study.interval(name, column.key) or ("", "")
                std = "" if spread.std is None else spread.std
                writer.writerow([name, column.key, spread.mean, std, *ends])
    return text.getvalue()


def _filled(content: dict[str, Any]) -> str:
    """Fill in the template; everything but our own style and script is escaped."""
    own = resources.files(__package__)
    css, js = ((own / f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    data = json.dumps(content["data"], separators=(",", ":"), allow_nan=False)
    data = data.replace("<", "\\u003c")  # so nothing in it can end the script element
    return _template().render({**content, "css": css, "js": js, "data": data})


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lightning_merge.evaluation.page", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _picture(file: Path, owner: str) -> dict[str, Any]:
    """Return a figure of a run folder, no wider than a page, with few colours."""
    from PIL import Image

    with Image.open(file) as opened:
        image = opened.convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)))
    small = image.quantize(128)
    buffer = BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return {
        "title": file.stem.replace("_", " "),
        "alt": f"Figure {file.stem} of {owner}",
        "from": owner,
        "data": base64.b64encode(buffer.getvalue()).decode(),
        "width": image.width,
        "height": image.height,
    }
