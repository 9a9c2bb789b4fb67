"""Tasks that come from several sources in one run."""

import json
import unicodedata

import pytest

from lightning_merge.core.errors import InputError
from lightning_merge.data import MergeDataModule
from lightning_merge.data.source import open_source, source_names

MIXED = {"two": "folders", "drawn_hues": "drawn", "one": "folders"}


@pytest.fixture
def mixed(root, preprocess):
    def make(**options):
        data = MergeDataModule(str(root), **{"source": MIXED, **options})
        data.preprocess = preprocess
        data.load()
        return data

    return make


def test_every_task_is_what_its_source_has(root, mixed, preprocess, tmp_path):
    data = mixed()
    assert data.tasks == tuple(MIXED)
    for task, name in MIXED.items():
        alone = MergeDataModule(str(root) if name == "folders" else "", source=name, tasks=[task])
        alone.load()
        assert data.record[task] == alone.record[task]
        assert data.classes[task] == alone.classes[task]
    data.write_splits(tmp_path / "splits.json")
    assert json.loads((tmp_path / "splits.json").read_text())["source"] == MIXED
    assert data.inputs("drawn_hues", "test")[0].inputs.shape == (1, 3, 8, 8)


def test_some_of_the_tasks(mixed, tmp_path):
    data = mixed(tasks=["one", "two"])
    data.write_splits(tmp_path / "splits.json")
    assert json.loads((tmp_path / "splits.json").read_text())["source"] == "folders"
    assert not data.own_split


def test_a_task_may_have_a_root_of_its_own(make_task, root, tmp_path, mixed):
    elsewhere = tmp_path / "else where: {x}"
    (root / "two").rename(elsewhere.with_name("moved"))
    elsewhere.mkdir()
    elsewhere.with_name("moved").rename(elsewhere / "two")
    data = mixed(roots={"two": str(elsewhere)})
    assert data.classes["two"] == ("x", "y", "z")
    assert data.inputs("two", "test").file(0) == "test/x/0.jpg"
    with pytest.raises(InputError, match=r"'two' has no data.*data\.root='.*root'\."):
        mixed()


def test_sources_are_opened_once(root):
    sources = open_source(MIXED, str(root)).sources
    assert sources["one"] is sources["two"]
    assert source_names() == ["drawn", "folders", "huggingface", "pool", "tables", "torchvision"]


def test_names_of_tasks_in_either_form(make_task):
    name = "caf\u00e9"
    root = make_task(name)
    for form in ("NFC", "NFD"):
        source = open_source({unicodedata.normalize(form, name): "folders"}, str(root))
        assert source.tasks() == [name]
        assert len(source.load(name, "test")) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": {"one": "zip"}}, r"data\.source='zip' is unknown"),
        ({"source": {}}, r"holds no tasks"),
        (
            {"tasks": ["one", "three"]},
            r"task 'three' has no source: data\.source names only those of two",
        ),
        (
            {"roots": {"three": "x"}},
            r"data\.roots names three, but data\.source=\{'two'.* no source",
        ),
        (
            {"source": "folders", "roots": {"one": "x"}},
            r"data\.roots names one, but .*'folders' gi",
        ),
        ({"source": {"one": "folders", "drawn_hues": "folders"}}, r"'drawn_hues' has no data"),
        ({"roots": {"one": "nowhere"}}, r"data\.root='nowhere' is not a folder"),
    ],
)
def test_what_does_not_fit_is_told(mixed, options, message):
    with pytest.raises(InputError, match=message):
        mixed(**options)
