"""Prompts of zero-shot heads, against the files of clip-benchmark where it is installed."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lightning_merge.core.errors import InputError
from lightning_merge.data import prompts as module
from lightning_merge.data.prompts import OWN, prompts, resolved
from lightning_merge.data.tasks import TASKS, task_spec

needs_package = pytest.mark.skipif(
    find_spec("clip_benchmark") is None, reason="clip-benchmark is not installed"
)
WITHOUT = {"fashion_mnist", "emnist_digits", "emnist_letters", "kmnist"}


@pytest.fixture(scope="module")
def package():
    """The class names and templates as stored, by the package's keys."""
    folder = Path(find_spec("clip_benchmark").submodule_search_locations[0]) / "datasets"
    names = json.loads((folder / "en_classnames.json").read_text())
    return names, json.loads((folder / "en_zeroshot_classification_templates.json").read_text())


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setattr(module, "_folder", lambda: None)


def test_tasks_without_prompts_there_are_known():
    images = {name: spec for name, spec in TASKS.items() if spec.text is None}
    assert {name for name, spec in images.items() if not spec.clip_benchmark} == WITHOUT


@needs_package
@pytest.mark.parametrize(
    "spec", [spec for spec in TASKS.values() if spec.text is None], ids=lambda spec: spec.name
)
def test_every_task_is_worded_as_the_package_has_it(package, spec):
    names, templates = package
    found = prompts(spec.name, spec.names)
    if spec.name in WITHOUT:
        assert (found.words, found.templates) == spec.prompts(spec.names)
        assert found.source == OWN
        return
    assert [t.format("x") for t in found.templates] == [
        t.format(c="x") for t in templates[spec.clip_benchmark]
    ]
    assert found.source.startswith("clip-benchmark ")
    theirs = names.get(spec.clip_benchmark)
    if spec.name == "fer2013":  # theirs are in another order than the labels of the files
        assert sorted(found.words) == theirs
        assert found.words == spec.names
    elif theirs is not None:
        assert list(found.words) == theirs
    else:
        assert found.words == tuple(map(spec.word, spec.names))


@needs_package
@pytest.mark.parametrize(
    ("task", "classes", "words"),
    [
        ("gtsrb", ["00014", "00000"], ("stop", "red and white circle 20 kph speed limit")),
        ("eurosat", ["SeaLake", "Forest"], ("lake or sea", "forest")),
        ("flowers", ["087_ball_moss", "001_rose", "000_my_own"], ("air plant", "rose", "my own")),
        ("svhn", ["9", "0"], ("nine", "zero")),
        ("dtd", ["polka-dotted", "my_texture"], ("polka-dotted", "my texture")),
        ("imagenet", ["n03773504", "n04008634"], ("missile", "missile")),
    ],
)
def test_classes_are_found_by_name(task, classes, words):
    assert prompts(task, classes).words == words


@needs_package
def test_the_package_is_not_imported():
    prompts("gtsrb", task_spec("gtsrb").names)
    assert "clip_benchmark" not in sys.modules
    assert resolved("auto") == resolved("clip_benchmark") == "clip_benchmark"
    assert prompts("gtsrb", ["14"], "own").words == ("red octagon: stop",)


@needs_package
def test_other_classes_than_the_table_has_are_refused(package, monkeypatch):
    names, templates = package
    changed = {**names, "eurosat": [*names["eurosat"][:-1], "lava"]}
    monkeypatch.setattr(module, "_contents", lambda: (changed, templates))
    with pytest.raises(InputError, match="other classes of 'eurosat' than the task table"):
        prompts("eurosat", ["Forest"])


@needs_package
def test_damaged_files_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_folder", lambda: tmp_path)
    module._contents.cache_clear()
    with pytest.raises(InputError, match=r"cannot be read .*; install it again"):
        prompts("eurosat", ["Forest"])


def test_without_the_package(absent):
    assert resolved("auto") == "own"
    assert prompts("gtsrb", ["14"]).words == ("red octagon: stop",)
    with pytest.raises(InputError, match=r"zoo\.text\.prompts='clip_.*pip install -e \"\.\[clip\]"):
        resolved("clip_benchmark", "zoo.text.prompts")
