"""The package as wheel, editable install and bare checkout, and what its front door imports."""

import ast
import configparser
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
FIND = """
import importlib.util
print(importlib.util.find_spec("lightning_merge.callbacks").origin)
try:
    import callbacks
except ImportError:
    print("no second name")
"""
IMPORT = """
import lightning_merge.callbacks
print(lightning_merge.callbacks.MTiesMerge.__module__)
"""


def python(*arguments: str, cwd: Path, path: list[Path] | None = None) -> str:
    """What a fresh Python prints; with `path`, one that knows no editable install (-S)."""
    environment, options = dict(os.environ), []
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([*map(str, path), *INSTALLED])
        options = ["-S"]
    command = [sys.executable, *options, *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that nothing is left in the checkout or taken from it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("lightning_merge", "callbacks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    python(*command, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [*ROOT.glob("lightning_merge/**/*.py"), *ROOT.glob("callbacks/**/*.py")]
    names = {file.relative_to(ROOT).as_posix() for file in files}
    renamed = {re.sub(r"^callbacks/", "lightning_merge/callbacks/", name) for name in names}
    page = {f"lightning_merge/evaluation/page/page.{kind}" for kind in ("html", "css", "js")}
    assert inside == renamed | page | {"lightning_merge/py.typed"}


def test_wheel_works_elsewhere(wheel, tmp_path):
    target = tmp_path / "target"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    found = python("-c", FIND + IMPORT, cwd=tmp_path, path=[target]).split("\n")
    assert Path(found[0]) == target / "lightning_merge" / "callbacks" / "__init__.py"
    assert found[1:3] == ["no second name", "lightning_merge.callbacks.m_ties"]


@pytest.mark.parametrize("name", ["lightning-merge", "lightning-merge.exe", "other"])
def test_console_script_starts_anew_in_utf8_and_names_itself(wheel, tmp_path, name):
    with zipfile.ZipFile(wheel) as archive:
        (file,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        points = configparser.ConfigParser()
        points.read_string(archive.read(file).decode())
    assert points.sections() == ["console_scripts"]
    ((command, place),) = points["console_scripts"].items()
    assert command == "lightning-merge"
    module, function = place.split(":")
    script = tmp_path / name  # as pip writes it
    script.write_text(
        "import sys\n"
        f"from {module} import {function}\n"
        "print(sys.flags.utf8_mode, flush=True)\n"
        f"sys.exit({function}())\n"
    )
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }  # fmt: skip
    for words, code, said in (
        (["--help"], 0, "usage: PROGRAM COMMAND"),
        ([], 2, "usage: PROGRAM COMMAND"),
        (["merge", "--help"], 0, "usage: PROGRAM merge [--config"),
        (["nosuch"], 2, ""),
    ):
        done = subprocess.run(
            [sys.executable, str(script), *words],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        own = name.startswith("lightning-merge")
        said = said.replace("PROGRAM", "lightning-merge" if own else "python -m lightning_merge")
        assert done.stdout.startswith(f"0\n1\n{said}")
    assert "unknown command 'nosuch'" in done.stderr


def test_checkout_works_without_installation():
    found = python("-c", FIND, cwd=ROOT, path=[ROOT]).splitlines()
    assert found == [str(ROOT / "callbacks" / "__init__.py"), "no second name"]


def test_editable_install_works_elsewhere(tmp_path):
    try:
        origin = importlib.metadata.distribution("lightning-merge").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        origin = None
    if not json.loads(origin or "{}").get("dir_info", {}).get("editable"):
        pytest.skip("not installed with pip install -e")
    found = python("-c", FIND, cwd=tmp_path).splitlines()
    assert found == [str(ROOT / "callbacks" / "__init__.py"), "no second name"]


def test_callbacks_have_one_name(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(ImportError, match=r"import lightning_merge\.callbacks, not callbacks"):
        importlib.import_module("callbacks")


def test_every_import_is_a_declared_dependency(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        declared = message_from_bytes(archive.read(metadata)).get_all("Requires-Dist", [])
        sources = [archive.read(name) for name in archive.namelist() if name.endswith(".py")]
    users = {canonical(line) for line in declared if "'dev'" not in line.replace('"', "'")}
    wanted = {name.split(".")[0] for source in sources for name in imported(source)}
    wanted -= {*sys.stdlib_module_names, "lightning_merge"}
    providers = importlib.metadata.packages_distributions()
    undeclared = {
        name for name in wanted if not users & {canonical(d) for d in providers.get(name, [name])}
    }
    assert not undeclared, f"add to dependencies in pyproject.toml: {sorted(undeclared)}"


def imported(source: bytes) -> list[str]:
    """The modules that a source file imports, those inside functions included."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return names + [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]


def canonical(requirement: str) -> str:
    """The name in a requirement, spelt as all spellings of it are compared."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_help_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "lightning_merge", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m lightning_merge")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "lightning_merge.cli.usage" in imported
    assert not imported & {"torch", "lightning", "jsonargparse", "numpy", "rich"}
