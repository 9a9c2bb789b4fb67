"""Classes that test lacks, and names in the two Unicode forms."""

import json
import os
import shutil
import unicodedata
from dataclasses import replace

import pytest
import torch

from lightning_merge.core.errors import InputError, InputWarning
from lightning_merge.data import MergeDataModule
from lightning_merge.data.classes import checked, in_order_of
from lightning_merge.data.examples import array_examples
from lightning_merge.data.folders import ImageFolders
from lightning_merge.data.from_hub import HubData

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
HANGUL = "\uac00"


def examples(classes, labels):
    return array_examples(
        classes, labels, torch.zeros(len(labels), 8, 8, dtype=torch.uint8).numpy()
    )


def rename(folder, old, new):
    (folder / old).rename(folder / new)


# Classes that test lacks


@pytest.mark.parametrize("absent", [["a"], ["c"], ["b", "c"]])
@pytest.mark.parametrize("emptied", [True, False])
def test_a_class_without_test_images_is_named_once(make_task, preprocess, absent, emptied):
    root = make_task("t", classes=("a", "b", "c"), train=10, test=3)
    for name in absent:
        shutil.rmtree(root / "t" / "test" / name)
        if emptied:
            (root / "t" / "test" / name).mkdir()
    data = MergeDataModule(str(root), tasks=["t"])
    data.preprocess = preprocess
    named = rf"'t': test has no example of {len(absent)} of 3 classes \({', '.join(absent)}\)"
    with pytest.warns(InputWarning, match=named) as told:
        data.load()
    data.load()
    assert len(told) == 1
    assert data.classes["t"] == ("a", "b", "c")
    here = [i for i, name in enumerate("abc") if name not in absent]
    assert data.inputs("t", "test").labels.tolist() == [i for i in here for _ in range(3)]


def test_a_class_of_test_alone_is_an_error(make, root):
    shutil.copytree(root / "one" / "test" / "a", root / "one" / "test" / "c")
    with pytest.raises(InputError, match=r"'one': .*only test has c, train has a, b; give both"):
        make()


def test_a_test_split_without_any_image_is_an_error(make, root):
    for name in "ab":
        shutil.rmtree(root / "one" / "test" / name)
        (root / "one" / "test" / name).mkdir()
    with pytest.raises(InputError, match="'one': test has no images"):
        make()


def test_an_empty_class_of_train_is_an_error(make, root):
    (root / "one" / "train" / "empty").mkdir()
    with pytest.raises(InputError, match=r"class folder .*empty is empty"):
        make()


@pytest.mark.filterwarnings("ignore:task 't'. test has no example")
@pytest.mark.parametrize("order", [("b", "a", "c"), ("c", "b"), ("a",), ("c", "a", "b")])
def test_test_labels_get_the_numbers_of_train(order):
    train = ("a", "b", "c")
    labels = [i % len(order) for i in range(7)]
    test = in_order_of(train, "t", examples(order, labels))
    assert test.classes == train
    assert [train[label] for label in test.labels] == [order[label] for label in labels]


@pytest.mark.parametrize("labels", [[0, -1, 1], [0, 2], [5, 1]])
def test_labels_that_are_no_class(labels):
    with pytest.raises(InputError, match=r"'t': train has the labels .*, but its 2 classes"):
        checked("t", "train", examples(("a", "b"), labels))


# Two forms of one name


@pytest.mark.parametrize("name", [COMPOSED, HANGUL, "z" + COMPOSED])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_a_class_may_be_spelled_in_either_form(make_task, name, forms):
    root = make_task("t", classes=("a", "name", "zz"))
    for split, form in zip(("train", "test"), forms, strict=True):
        rename(root / "t" / split, "name", unicodedata.normalize(form, name))
    data = MergeDataModule(str(root), tasks=["t"])
    data.load()
    assert data.classes["t"] == tuple(sorted(("a", name, "zz")))
    assert json.loads(json.dumps(data.record["t"]))["classes"] == sorted(("a", name, "zz"))
    assert data.record["t"]["test"]["images"] == 12


def test_the_form_changes_neither_order_nor_digest(make_task):
    root = make_task("t", classes=("name", "zz", "cafa", "cafz"))
    digests = set()
    for old, new in (("name", COMPOSED), (COMPOSED, DECOMPOSED)):
        for split in ("train", "test"):
            rename(root / "t" / split, old, new)
        data = MergeDataModule(str(root), tasks=["t"])
        data.load()
        assert data.classes["t"] == ("cafa", "cafz", COMPOSED, "zz")
        digests.add(data.digest("t"))
    assert len(digests) == 1


def test_files_in_either_form_have_one_order(make_task):
    root = make_task("t", train=3)
    folder = root / "t" / "train" / "a"
    rename(folder, "1.png", COMPOSED + ".png")
    rename(folder, "2.png", "cafz.png")

    def contents():
        train = ImageFolders(str(root)).load("t", "train")
        return [train.content(i) for i in range(3)]

    before = contents()
    rename(folder, COMPOSED + ".png", DECOMPOSED + ".png")
    assert contents() == before


@pytest.mark.parametrize("split", ["train", "test"])
def test_two_folders_of_one_name_are_an_error(make_task, split):
    root = make_task("t", classes=("a", COMPOSED))
    shutil.copytree(root / "t" / split / "a", root / "t" / split / DECOMPOSED)
    data = MergeDataModule(str(root), tasks=["t"])
    spelled = r"'cafe\\u0301', 'caf\\xe9'"
    with pytest.raises(
        InputError, match=rf"'t': {split} has .*differ only in their Unicode form: {spelled}"
    ):
        data.load()


@pytest.mark.parametrize("given", [COMPOSED, DECOMPOSED, None])
@pytest.mark.parametrize("stored", [COMPOSED, DECOMPOSED])
def test_a_task_may_be_spelled_in_either_form(make_task, given, stored):
    root = make_task(stored)
    make_task("other")
    data = MergeDataModule(
        str(root), tasks=given and [given, "other"], unseen=[DECOMPOSED] if given else []
    )
    data.load()
    assert data.tasks == (COMPOSED, "other")
    assert data.unseen == ((COMPOSED,) if given else ())


def test_two_tasks_of_one_name_are_an_error(make_task):
    root = make_task(COMPOSED)
    make_task(DECOMPOSED)
    with pytest.raises(InputError, match=r"task 'café' in two Unicode forms, 'caf\\xe9' and"):
        MergeDataModule(str(root)).load()
    with pytest.raises(InputError, match=r"data\.tasks names café twice"):
        MergeDataModule(str(root), tasks=[COMPOSED, DECOMPOSED])


@pytest.mark.parametrize("name", ["a\nb", "tab\t", os.fsdecode(b"caf\xe9")])
def test_names_that_no_table_can_print_are_refused(make_task, name):
    root = make_task(name)
    with pytest.raises(InputError, match=r"cannot name a task: .*control characters, is not UTF-8"):
        MergeDataModule(str(root))


def test_strings_of_the_hub_in_two_forms(tmp_path, picture):
    library = pytest.importorskip("datasets")
    for split, form in {"train": "NFC", "test": "NFD"}.items():
        names = [unicodedata.normalize(form, name) for name in ("abc", COMPOSED)]
        count = 8 if split == "train" else 3
        columns = {
            "image": [picture(i + 100 * len(split)) for i in range(count)],
            "label": [names[i % 2 if split == "train" else 1] for i in range(count)],
        }
        features = library.Features({"image": library.Image(), "label": library.Value("string")})
        saved = library.Dataset.from_dict(columns, features=features)
        saved.save_to_disk(tmp_path / DECOMPOSED / split)
    assert HubData(str(tmp_path)).tasks() == [COMPOSED]
    data = MergeDataModule(str(tmp_path), source="huggingface", tasks=[COMPOSED])
    with pytest.warns(InputWarning, match=r"test has no example of 1 of 2 classes \(abc\)"):
        data.load()
    assert data.classes[COMPOSED] == ("abc", COMPOSED)
    assert data.division.part(COMPOSED, "test")[0].labels.tolist() == [1, 1, 1]


def test_names_of_other_sources_are_composed():
    found = checked("t", "train", examples((DECOMPOSED, "b"), [0, 1]))
    assert found.classes == (COMPOSED, "b")
    with pytest.raises(InputError, match=r"differ only in their Unicode form"):
        checked("t", "train", replace(found, classes=(COMPOSED, DECOMPOSED)))
