"""Packages whose names are imported when they are first asked for."""

import ast
import doctest
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

import lightning_merge as lm
from lightning_merge import methods
from lightning_merge.cli.merge import merge_files
from lightning_merge.core.errors import InputError
from lightning_merge.methods.base import MergeMethod
from lightning_merge.runs import record

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lightning_merge", "lightning_merge.data")


@pytest.mark.parametrize("name", PACKAGES)
def test_type_checkers_see_what_is_there(name):
    """The names of the block for them, of `__all__` and of `dir`, which all resolve."""
    package = import_module(name)
    block = next(
        node
        for node in ast.parse(Path(package.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    places = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(places) == sorted(package.__all__)
    assert set(places) <= set(dir(package))
    for own, (module, original) in places.items():
        assert getattr(package, own) is getattr(import_module(module), original)
    with pytest.raises(AttributeError, match=f"{name}' has no attribute 'Tees'"):
        _ = package.Tees


@pytest.mark.parametrize("name", [*PACKAGES, "lightning_merge.data.tasks"])
def test_import_does_not_wait_for_torch(name):
    code = f"""
import sys, importlib
package = importlib.import_module({name!r})
print(*dir(package), hasattr(package, "Tees"))
assert not {{"torch", "lightning", "numpy"}} & set(sys.modules), sys.modules
"""
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_methods_and_transforms_are_at_the_front_door():
    assert set(methods.__all__) < set(lm.__all__)
    assert lm.merge is merge_files


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(lm, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 8
    assert found.failed == 0
    assert (tmp_path / "merged.safetensors").is_file()


def test_merge_in_python_refuses_as_the_command_does(tmp_path):
    with pytest.raises(InputError, match="needs a network and unlabelled inputs"):
        lm.merge(*files(tmp_path), lm.RegMean(), output=str(tmp_path / "merged.safetensors"))


def files(folder):
    for name in ("base", "a"):
        lm.save_checkpoint({"w": torch.randn(3)}, folder / f"{name}.safetensors")
    return str(folder / "base.safetensors"), {"a": str(folder / "a.safetensors")}


@pytest.mark.parametrize("given", ["Ties", "lightning_merge.methods.Ties", "lightning_merge.Ties"])
def test_a_method_has_one_class_path_in_records(given):
    """Runs of before the front door had methods are not taken for other ones."""
    parser = ArgumentParser()
    parser.add_argument("--method", type=MergeMethod)
    found = parser.parse_args(["--method", given])
    assert found.method.init_args.density == lm.Ties().density
    before = record.stored({"x": [{"class_path": "lightning_merge.methods.Ties"}]})
    assert record.stored({"x": [{"class_path": found.method.class_path}]}) == before
    assert record.stored({"x": "lightning_merge.methods.Dare"}) != record.stored({"x": "Ties"})
