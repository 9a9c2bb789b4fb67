"""The documentation: every page is in the site, every link leads somewhere, examples run."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *PAGES]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def identifier(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def listed(nav: Any) -> Iterator[str]:
    """The pages of a nav, of its sections, and so on."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from listed(entry)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and Markdown for Python make them."""
    titles = HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\s-]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_site_lists_every_page_once():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = sorted(page.relative_to(DOCS).as_posix() for page in PAGES)
    assert sorted(listed(config["nav"])) == pages


@pytest.mark.parametrize("file", TEXTS, ids=identifier)
def test_relative_links_resolve(file):
    broken = []
    for link in LINK.findall(FENCE.sub("", file.read_text(encoding="utf-8"))):
        place, _, anchor = link.partition("#")
        target = (file.parent / place).resolve() if place else file
        if re.match(r"\w+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("file", TEXTS, ids=identifier)
def test_files_that_are_named_exist(file):
    text = file.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:docs|configs|assets|tests)/[\w/.-]+\.\w+", text))
    assert not [name for name in named if not (ROOT / name).exists()]


def test_examples_of_own_parts_run(tmp_path, monkeypatch):
    blocks = re.findall(
        r"^```python\n(.*?)^```$",
        (DOCS / "extend.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    (tmp_path / "mine.py").write_text("\n\n".join(blocks), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    import mine

    base = {"w": torch.zeros(2)}
    rows = {"a": [1, 0.5], "b": [2, 0], "c": [9, 0.1]}
    experts = {task: {"w": torch.tensor(row, dtype=torch.float32)} for task, row in rows.items()}
    assert mine.Median(scale=0.5)(base, experts)["w"].tolist() == pytest.approx([1, 0.05])
    clipped = mine.Median(transforms=[mine.Clip(limit=0.3)])(base, experts)["w"]
    assert clipped.tolist() == pytest.approx([0.3, 0.1])
    assert mine.TinyConv(width=8)(torch.zeros(2, 3, 32, 32)).shape == (2, 8)
