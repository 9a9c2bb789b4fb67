"""The page of claims: every table and figure once, every verdict with its number, every config."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
VERDICTS = ("held", "did not hold", "cannot be told", "not yet run", "not testable here")


def numbered(kind: str, last: int) -> set[str]:
    return {f"{kind} {number}" for number in range(1, last + 1)}


PAPERS = {
    "M-Loss": numbered("Table", 8) | numbered("Figure", 3),
    "LwPTV": numbered("Table", 18) | numbered("Figure", 13),
    "StatsMerging": numbered("Table", 18)
    | numbered("Figure", 8)
    | {f"Table {number} (A.2)" for number in (3, 4, 5, 6)}
    | {"Table 4 (A.5.5)"},
}
"""Section of the page -> the tables and figures of its paper, as they are numbered there."""


def rows(paper: str) -> list[list[str]]:
    """The cells of a section's rows, without the header."""
    section = PAGE.partition(f"\n## {paper}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("paper", PAPERS)
def test_every_table_and_figure_has_one_row(paper):
    found = [name for name, *_ in rows(paper) if not name.startswith("Section")]
    assert len(found) == len(set(found))
    assert set(found) == PAPERS[paper]


@pytest.mark.parametrize("paper", PAPERS)
def test_every_verdict_rests_on_a_number_that_is_cited(paper):
    for name, claim, _, mini, imagenet, verdict in rows(paper):
        assert claim, name
        assert verdict.strip("`") in VERDICTS, name
        if verdict.strip("`") in VERDICTS[:3]:
            assert "](" in mini + imagenet, name
        if verdict == "`not testable here`":
            assert re.search("needs|nothing|not testable|as Table|a list", mini), name


def test_every_config_is_named_and_exists():
    cells = [row[2] for paper in PAPERS for row in rows(paper)]
    folder = ROOT / "configs" / "claims"
    files = {f.relative_to(folder).with_suffix("").as_posix() for f in folder.rglob("*.yaml")}
    assert {name for cell in cells for name in re.findall(r"`(.+?)`", cell)} == files
