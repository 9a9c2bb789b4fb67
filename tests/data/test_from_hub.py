"""Hugging Face data sets saved on disk; nothing here reaches for the network."""

import builtins
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.errors import InputError
from lightning_merge.data import MergeDataModule, from_hub
from lightning_merge.data.from_hub import HubData
from lightning_merge.data.splits import content_hashes

NAMES = ("cat", "dog")


@pytest.fixture
def library(tmp_path, monkeypatch):
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return library


@pytest.fixture
def table(library, picture):
    def table(count, start=0, label=None, image="image"):
        label = label or library.ClassLabel(names=list(NAMES))
        values = [i % 2 for i in range(count)]
        if label.dtype == "string":
            values = [NAMES[value] for value in values]
        columns = {image: [picture(start + i) for i in range(count)], "label": values}
        features = library.Features({image: library.Image(), "label": label})
        return library.Dataset.from_dict(columns, features=features)

    return table


@pytest.fixture
def root(tmp_path, library, table):
    root = tmp_path / "saved"
    both = library.DatasetDict(train=table(12), test=table(4, 100))
    both.save_to_disk(root / "pets")
    for split, start in {"train": 200, "test": 300}.items():
        table(10, start).save_to_disk(root / "apart" / split)
        (root / "rows" / "data").mkdir(parents=True, exist_ok=True)
        file = root / "rows" / "data" / f"{split}-00000-of-00001.parquet"
        table(6, start + 500).to_parquet(file)
    return root


@pytest.mark.parametrize(
    ("task", "train", "test"), [("pets", 12, 4), ("apart", 10, 10), ("rows", 6, 6)]
)
def test_saved_layouts(root, picture, task, train, test):
    source = HubData(str(root))
    assert source.tasks() == ["apart", "pets", "rows"]
    examples = source.load(task, "train")
    assert (len(examples), len(source.load(task, "test"))) == (train, test)
    assert examples.classes == NAMES
    assert examples.labels.tolist() == [i % 2 for i in range(train)]
    assert len(set(content_hashes(examples, task))) == train
    if task == "pets":
        assert np.array_equal(np.asarray(examples.item(3)), np.asarray(picture(3)))
    pickle.dumps(examples)


def test_a_data_module_of_saved_tasks(root, preprocess):
    data = MergeDataModule(str(root), source="huggingface", tasks=["pets", "rows"])
    data.preprocess = preprocess
    data.load()
    assert data.inputs("rows", "test")[5].inputs.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("kind", ["string", "int64"])
def test_labels_without_names(root, library, table, kind):
    table(5, label=library.Value(kind)).save_to_disk(root / "plain" / "train")
    examples = HubData(str(root)).load("plain", "train")
    assert examples.classes == (NAMES if kind == "string" else ("0", "1"))
    assert examples.labels.tolist() == [0, 1, 0, 1, 0]


def test_the_columns_of_the_task_table(root, table):
    table(4, image="img").save_to_disk(root / "cifar10" / "train")
    assert len(HubData(str(root)).load("cifar10", "train")) == 4
    table(4, image="img").save_to_disk(root / "other" / "train")
    with pytest.raises(InputError, match=r"'other': train has the columns .*not 'image'"):
        HubData(str(root)).load("other", "train")


def test_the_class_names_of_the_task_table(root, library):
    picture = {"bytes": b"GIF8", "path": None}
    columns = {"jpg": [picture] * 3, "cls": [4, 0, 6]}
    features = library.Features({"jpg": library.Image(), "cls": library.Value("int64")})
    saved = library.Dataset.from_dict(columns, features=features)
    saved.save_to_disk(root / "fer2013" / "train")
    faces = HubData(str(root)).load("fer2013", "train")
    assert [faces.classes[label] for label in faces.labels] == ["neutral", "angry", "surprised"]


def test_truth_values_are_labels(root, library):
    columns = {"image": [{"bytes": b"GIF8", "path": None}] * 2, "label": [True, False]}
    features = library.Features({"image": library.Image(), "label": library.Value("bool")})
    library.Dataset.from_dict(columns, features=features).save_to_disk(root / "pcam" / "train")
    tissue = HubData(str(root)).load("pcam", "train")
    assert (tissue.classes, tissue.labels.tolist()) == (("0", "1"), [1, 0])


def test_a_data_set_with_other_classes_is_refused(root, table):
    table(4).save_to_disk(root / "imagenet" / "train")
    with pytest.raises(InputError, match=r"'imagenet': 'label' has 2 classes, ILSVRC.* has 1000"):
        HubData(str(root)).load("imagenet", "train")


def test_missing_data(root, library, monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(library, "load_dataset", offline)
    source = HubData(str(root))
    with pytest.raises(InputError, match=r"tanganke/sun397 cannot be loaded \(no network\)"):
        source.load("sun397", "train")
    with pytest.raises(InputError, match="'my_birds' has no data: the task table names no repo"):
        source.load("my_birds", "train")
    (root / "empty").mkdir()
    with pytest.raises(InputError, match=r"'empty' has no data: .*has no split 'train'"):
        source.load("empty", "train")


def test_the_repository_is_asked_for_with_its_configuration(root, library, table, monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return table(4)

    monkeypatch.setattr(library, "load_dataset", load_dataset)
    HubData("").load("svhn", "test")
    HubData(str(root)).load("svhn", "train")
    arguments = ("ufldl-stanford/svhn", "cropped_digits")
    assert asked == [
        (arguments, {"split": "test", "cache_dir": None}),
        (arguments, {"split": "train", "cache_dir": str(root)}),
    ]


@pytest.mark.parametrize("reachable", [True, False])
def test_without_a_network_the_library_is_kept_from_trying(monkeypatch, reachable):
    """Left alone it tries six times in 23 seconds; what its cache holds it finds all the same."""
    from huggingface_hub import constants

    found = []

    def load_dataset(*_, **__):
        found.append(constants.HF_HUB_OFFLINE)
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "_answers", lambda _: reachable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    library = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setattr(from_hub, "_library", lambda: library)
    with pytest.raises(InputError, match=r"ylecun/mnist cannot be loaded \(no network\)"):
        HubData("").load("mnist", "train")
    assert found == [not reachable]
    assert constants.HF_HUB_OFFLINE is False


def test_the_package_is_optional(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r'pip install "lightning-merge\[hub\]"'):
        HubData(str(tmp_path)).load("mnist", "train")
