"""The one direction of dependency, read from the import statements."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = {
    "core": 0,
    "methods": 1,
    "models": 2,
    "data": 2,
    "evaluation": 2,
    "modules": 3,
    "runs": 4,
    "callbacks": 5,
    "cli": 6,
    "__main__": 7,
}
ROOMS = {"checkpoints": 1, "vectors": 2, "networks": 3}
"""Those of core; what stands beside them is below all."""
FILES = sorted([*ROOT.glob("lightning_merge/**/*.py"), *ROOT.glob("callbacks/**/*.py")])


def package(file: Path) -> str:
    """The part of lightning_merge that a file belongs to."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "callbacks" else parts[1]


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import of a file, those inside functions included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            if node.module == "lightning_merge":
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, str(node.module)


def own_imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and part of every import from within lightning_merge."""
    for line, name in imports(file):
        head, *rest = name.split(".")
        if head == "lightning_merge" and rest:
            yield line, rest[0]


@pytest.mark.parametrize("part", LEVELS)
def test_a_part_imports_from_its_own_level_and_below(part):
    files = [file for file in FILES if package(file) == part]
    assert files
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports from {target}"
        for file in files
        for line, target in own_imports(file)
        if target in LEVELS and LEVELS[target] > LEVELS[part]
    ]
    assert not wrong, "\n".join(wrong)


def test_every_part_has_a_level():
    assert {package(file) for file in FILES} - {"__init__"} == set(LEVELS)


def test_parts_of_one_level_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {part: set() for part in LEVELS}
    for file in FILES:
        for _, target in own_imports(file):
            if target != package(file):
                graph.setdefault(package(file), set()).add(target)
    TopologicalSorter(graph).prepare()


def test_rooms_of_core_import_from_their_own_level_and_below():
    def room(parts):
        return ROOMS.get(parts[0], 0) if len(parts) > 1 else 0

    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in FILES
        if package(file) == "core"
        for line, name in imports(file)
        if name.startswith("lightning_merge.core.")
        if room(name.split(".")[2:]) > room(file.relative_to(ROOT).parts[2:])
    ]
    assert not wrong, "\n".join(wrong)
    assert {f.parent.name for f in FILES if package(f) == "core"} - {"core"} == set(ROOMS)


def test_core_imports_torch_and_numpy_only():
    """And what fetches from the Hub, in its one file."""
    known = {*sys.stdlib_module_names, "lightning_merge", "torch", "numpy"}
    fetches = {"hub.py": "huggingface_hub"}
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in FILES
        if package(file) == "core"
        for line, name in imports(file)
        if name.split(".")[0] not in {*known, fetches.get(file.name)}
    ]
    assert not wrong, "\n".join(wrong)


def test_core_and_methods_do_not_import_lightning():
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in FILES
        if package(file) in ("core", "methods")
    ]
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
    assert not {{"lightning", "pytorch_lightning"}} & set(sys.modules), name
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
