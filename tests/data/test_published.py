"""Published divisions of data sets that come undivided, and the mark of those that are ours."""

import json
import re

import pytest

from lightning_merge.core.errors import InputError, InputWarning
from lightning_merge.data import MergeDataModule
from lightning_merge.data.from_torchvision import TorchvisionData
from lightning_merge.data.published import listed_rows
from lightning_merge.data.source import open_source

CLASSES = {
    "sun397": ("a/abbey", "a/apse/indoor", "b/bar"),
    "eurosat": ("AnnualCrop", "Forest", "SeaLake"),
    "resisc45": ("airplane", "sea_ice", "wetland"),
}
FOLDER = {"sun397": "SUN397", "eurosat": "eurosat/2750", "resisc45": "NWPU-RESISC45"}
LISTS = {
    "sun397": ("Training_01.txt", "Testing_01.txt"),
    "eurosat": ("eurosat-train.txt", "eurosat-test.txt"),
    "resisc45": ("resisc45-train.txt", "resisc45-test.txt"),
}
PER_CLASS = 8


def name_of(task, label, i):
    """The path of an image from the data set's folder on, as its publisher has it."""
    place = CLASSES[task][label]
    name = f"sun_{label}{i:02d}.jpg" if task == "sun397" else f"{place}_{i}.jpg"
    return f"{place}/{name}"


@pytest.fixture
def root(tmp_path, picture):
    root = tmp_path / "data"
    for seed, task in enumerate(CLASSES):
        for label in range(3):
            for i in range(PER_CLASS):
                file = root / FOLDER[task] / name_of(task, label, i)
                file.parent.mkdir(parents=True, exist_ok=True)
                picture(1000 * seed + 100 * label + i).save(file)
    (root / "SUN397" / "ClassName.txt").write_text("\n".join(f"/{c}" for c in CLASSES["sun397"]))
    return root


@pytest.fixture
def write(tmp_path):
    """Write a list of images; the published ones alone decide which."""

    def write(name, lines, end="\n"):
        folder = tmp_path / "splits"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes("".join(line + end for line in lines).encode())
        return str(folder)

    return write


def divide(task, train=range(5), test=range(5, PER_CLASS)):
    """Paths of train and of test: other images of each class."""
    return [
        [name_of(task, label, (i + label) % PER_CLASS) for label in range(3) for i in part]
        for part in (train, test)
    ]


FORMS = {  # of a line, given the path from the data set's folder on
    "path": lambda path: path,
    "leading slash": lambda path: f"/{path}",
    "name": lambda path: path.rpartition("/")[2],
    "more folders": lambda path: f"./somewhere/else/{path}",
    "backslashes": lambda path: path.replace("/", "\\"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", CLASSES)
def test_lists_divide(root, write, task, form):
    wanted = divide(task)
    for name, paths in zip(LISTS[task], wanted, strict=True):
        splits = write(
            name, map(FORMS[form], reversed(paths)), "\r\n" if form == "name" else "\n\n"
        )
    source = TorchvisionData(str(root), splits)
    assert not source.own_split(task)
    for split, paths in zip(("train", "test"), wanted, strict=True):
        found = source.load(task, split)
        named = [found.file(i).removeprefix(FOLDER[task] + "/") for i in range(len(found))]
        assert named == sorted(paths)
        labels = [CLASSES[task].index(path.rpartition("/")[0]) for path in named]
        assert found.labels.tolist() == labels


def test_a_published_validation_list_is_part_of_train(root, write):
    train, test = divide("eurosat")
    write("eurosat-train.txt", train[:9])
    write("eurosat-val.txt", train[9:])
    source = TorchvisionData(str(root), write("eurosat-test.txt", test))
    found = source.load("eurosat", "train")
    assert sorted(found.file(i)[len("eurosat/2750/") :] for i in range(len(found))) == sorted(train)


def test_images_in_no_list_are_left_out_and_counted(root, write):
    train, test = divide("resisc45", range(3), range(5, PER_CLASS))
    write("resisc45-train.txt", train)
    source = TorchvisionData(str(root), write("resisc45-test.txt", test))
    with pytest.warns(InputWarning, match=r"'resisc45': 6 of 24 images are left out.*resisc45-tr"):
        assert len(source.load("resisc45", "train")) == 9


FAULTS = {
    "absent": ("Training_01.txt", lambda t, s: [*t, "/a/abbey/sun_999.jpg", "/c/x/sun_1.jpg"],
               r"2 of 17 images that .*Training_01\.txt names are missing: /a/abbey/sun_999"),
    "of another class": ("Testing_01.txt", lambda t, s: [s[0].replace("abbey", "abbot"), *s[1:]],
                         r"1 of 9 images that .*Testing_01\.txt names are missing: a/abbot"),
    "in both": ("Testing_01.txt", lambda t, s: [*s, *t[:2]],
                r"lists of train and test in data\.splits both name 2 images: sun_"),
    "empty": ("Training_01.txt", lambda t, s: [" ", "/"], r"Training_01\.txt names no image"),
    "lacking": ("Testing_01.txt", None, r"has a list of 'sun397', but no Testing_01\.txt; add it"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_lists_that_do_not_divide_are_refused(root, write, fault):
    name, change, message = FAULTS[fault]
    train, test = divide("sun397")
    write("Training_01.txt", train)
    splits = write("Testing_01.txt", test)
    if change is None:
        (root.parent / "splits" / name).unlink()
    else:
        write(name, change(train, test))
    data = MergeDataModule(str(root), source="torchvision", tasks=["sun397"], splits=splits)
    with pytest.raises(InputError, match=message):
        data.load()
    every = TorchvisionData(str(root), splits)
    assert sorted(every.tasks()) == sorted(
        CLASSES
    )  # a fault is told, not taken for a missing data set


def test_a_name_that_may_mean_two_images_is_refused(tmp_path, write):
    files = [tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg"]
    (tmp_path / "list.txt").write_text("1.jpg\n")
    with pytest.raises(InputError, match=r"1 names in .*list\.txt match several images: 1\.jpg"):
        listed_rows("t", files, {"train": [tmp_path / "list.txt"]})


@pytest.mark.parametrize("folder", ["none", "data"])
def test_a_folder_without_lists_is_refused(root, folder):
    given = str(root.parent / folder)
    with pytest.raises(
        InputError, match=rf"data\.splits='{re.escape(given)}' does not hold any of"
    ):
        MergeDataModule(str(root), source="torchvision", tasks=["sun397"], splits=given)


def test_other_sources_take_no_lists(root, write):
    splits = write("Training_01.txt", ["x"])
    for source in ("folders", {"a": "folders", "b": "drawn"}):
        with pytest.raises(InputError, match=r"data\.splits=.* brings its own division"):
            open_source(source, str(root), splits=splits)


# Divisions of our own are marked


@pytest.fixture
def data(root, preprocess):
    def make(**options):
        data = MergeDataModule(
            str(root), source="torchvision", tasks=list(CLASSES), validation_fraction=0.3, **options
        )
        data.preprocess = preprocess
        data.load()
        return data

    return make


def test_without_lists_the_data_module_says_so(data, tmp_path):
    found = data()
    assert found.own_split == tuple(CLASSES)
    found.write_splits(tmp_path / "splits.json")
    assert json.loads((tmp_path / "splits.json").read_text())["own_split"] == list(CLASSES)
    found.only(["eurosat"])
    assert found.own_split == ("eurosat",)


def test_lists_of_one_task_take_its_mark_alone(data, write, tmp_path):
    train, test = divide("sun397")
    write("Training_01.txt", train)
    splits = write("Testing_01.txt", test)
    with pytest.warns(InputWarning, match=r"holds none of .*this package divides the task") as told:
        found = data(splits=splits)
    assert {re.search(r"'(\w+)'", str(one.message))[1] for one in told} == {"eurosat", "resisc45"}
    assert found.own_split == ("eurosat", "resisc45")
    own = data()
    for task in ("eurosat", "resisc45"):
        assert found.record[task] == own.record[task]
    assert found.record["sun397"]["test"] != own.record["sun397"]["test"]
    assert found.record["sun397"]["test"]["images"] == len(test)
    found.write_splits(tmp_path / "splits.json")
    assert json.loads((tmp_path / "splits.json").read_text())["own_split"] == list(found.own_split)


def test_data_sets_with_test_images_bear_no_mark(root):
    source = TorchvisionData(str(root))
    assert not any(map(source.own_split, ("mnist", "dtd", "cars", "my_birds")))
