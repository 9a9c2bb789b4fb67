"""Every example in a docstring runs, and what is public has one."""

import ast
import doctest
import gc
import importlib
import re
from pathlib import Path

import pytest
from tiny_zoo import quiet  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*ROOT.glob("lightning_merge/**/*.py"), *ROOT.glob("callbacks/**/*.py")])
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SECTION = re.compile(r"^(\s*)(Args|Attributes|Raises):\s*$")
ENTRY = re.compile(r"^\*{0,2}[A-Za-z_][\w, .]*?(?: \([^)]*\))?: (\S)")


def module_of(file: Path) -> str:
    """The name by which a file is imported."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = ("lightning_merge", *parts) if parts[0] == "callbacks" else parts
    return ".".join(parts).removesuffix(".__init__")


def documented(tree: ast.Module):
    """Every class and function of a file, with its docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            yield node, ast.get_docstring(node, clean=True)


MODULES = [module_of(file) for file in FILES if ">>>" in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    report = []
    # Classes that examples define are a user's, and not found among those of the package.
    finder, own = doctest.DocTestFinder(exclude_empty=True), {"__name__": "__main__"}
    for test in finder.find(module, name, extraglobs=own):
        if test.examples:
            runner.run(test, out=report.append)
    gc.collect()  # registries list the subclasses that are alive, those of examples too
    assert not runner.failures, "".join(report)
    assert runner.tries


def needs_example(file: Path) -> bool:
    """Whether what is public in a file is for others; commands have their help instead."""
    return module_of(file).split(".")[1:2] not in ([], ["cli"], ["__main__"])


@pytest.mark.parametrize("file", [f for f in FILES if needs_example(f)], ids=module_of)
def test_what_is_public_has_an_example(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    ]
    lacking = [node.name for node in public if ">>>" not in (ast.get_docstring(node) or "")]
    assert not lacking, f"{file.relative_to(ROOT)}: no example in {', '.join(lacking)}"


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_entries_of_sections_are_capitalised(file):
    wrong = []
    for node, text in documented(ast.parse(file.read_text(encoding="utf-8"))):
        indent = None
        for line in text.splitlines():
            if section := SECTION.match(line):
                indent = len(section[1])
            elif indent is not None and line.strip():
                depth = len(line) - len(line.lstrip())
                entry = ENTRY.match(line.strip()) if depth == indent + 4 else None
                indent = None if depth <= indent else indent
                if entry and entry[1].islower():
                    wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}: {line.strip()}")
    assert not wrong, "\n".join(wrong)
