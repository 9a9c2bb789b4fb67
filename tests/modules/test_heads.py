"""Heads meet data by the names of classes, whatever order and spelling either has."""

from types import SimpleNamespace
from unicodedata import normalize

import pytest
import torch
from published import ClassificationHead, publish
from torch.nn import functional as F

from lightning_merge.core.errors import InputError, InputWarning
from lightning_merge.data.tasks import expand_tasks, task_spec
from lightning_merge.models import (
    CosineHead,
    LinearHead,
    NormalizedLinearHead,
    load_heads,
    save_heads,
)
from lightning_merge.modules.base import fitting_heads
from lightning_merge.modules.heads import head_files, heads_hash
from lightning_merge.modules.task_files import task_file

DIM = 6
ENCODER = SimpleNamespace(
    width=lambda shape: DIM, preprocess=SimpleNamespace(shape=lambda parts, answers: (3, 8, 8))
)
KINDS = {
    "cosine": lambda n: CosineHead(F.normalize(torch.randn(n, DIM)), 9.0, torch.randn(DIM)),
    "linear": lambda n: LinearHead(torch.randn(n, DIM), torch.randn(n)),
    "normalised": lambda n: NormalizedLinearHead(torch.randn(n, DIM), torch.randn(n)),
}


def data_of(**classes):
    """Stand for a data module whose images are never asked for."""
    one = SimpleNamespace(parts=1, answers=0)
    division = SimpleNamespace(part=lambda task, part: (one, None))
    return SimpleNamespace(tasks=list(classes), classes=classes, division=division)


@pytest.fixture
def features():
    return torch.randn(5, DIM, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("task", "stored", "wanted"),
    [
        ("fruit", ["fig", "kiwi", "nut"], ["fig", "kiwi", "nut"]),
        ("fruit", ["fig", "kiwi", "nut"], ["nut", "fig", "kiwi"]),
        ("fruit", ["1", "2", "10"], ["01", "10", "02"]),
        ("fruit", ["kiwi", normalize("NFD", "pêche")], [normalize("NFC", "pêche"), "kiwi"]),
        ("sun397", ["abbey", "church/indoor", "bar"], ["/a/abbey", "/b/bar", "/c/church/indoor"]),
        ("sun397", ["a_abbey", "b_bar", "c_church_indoor"], ["bar", "abbey", "church indoor"]),
        ("gtsrb", ["14", "00000"], ["red and white circle 20 kph speed limit", "stop"]),
        ("eurosat", ["AnnualCrop", "SeaLake"], ["lake or sea", "annual crop land"]),
        ("mnist", ["0 - zero", "1 - one"], ["1", "0"]),
    ],
)
def test_logits_stand_in_the_order_of_the_data(tmp_path, features, kind, task, stored, wanted):
    """The row of a class goes where the data has the class, under whatever name of the same."""
    head = KINDS[kind](len(stored))
    file = str(save_heads({task: head}, tmp_path / "h.safetensors", classes={task: stored}))
    fitting = fitting_heads(file, data_of(**{task: wanted}), ENCODER)[task]
    assert fitting.classes == tuple(wanted)
    spec, logits = task_spec(task), head(features)
    for column, name in enumerate(wanted):
        same = [spec.identity(s) == spec.identity(name) for s in stored]
        torch.testing.assert_close(fitting(features)[:, column], logits[:, same.index(True)])


@pytest.mark.parametrize(
    ("task", "wanted", "named"),
    [
        ("fruit", ["fig", "kiwi", "pear"], "'nut'.*'pear'"),
        ("fruit", ["Fig", "kiwi", "nut"], "'fig'.*'Fig'"),
        ("fruit", [" fig", "kiwi", "nut"], "'fig'.*' fig'"),
        ("fruit", ["0", "1", "2"], "'fig', 'kiwi', 'nut'.*'0', '1', '2'"),
        ("sun397", ["fig", "kiwi", "nut"], "'abbey', 'bar', 'bayou'.*'fig'"),
        ("sun397", ["/a/abbey", "bar", "beach"], "has 'bayou', the data 'beach'"),
    ],
)
def test_heads_of_other_classes_are_refused(tmp_path, task, wanted, named):
    stored = ["abbey", "bar", "bayou"] if task == "sun397" else ["fig", "kiwi", "nut"]
    head = LinearHead(torch.randn(3, DIM)).named(stored)
    file = str(save_heads({task: head}, tmp_path / "h.safetensors"))
    with pytest.raises(InputError, match=rf"(?s)h\.safetensors.*{task}.*{named}"):
        fitting_heads(file, data_of(**{task: wanted}), ENCODER)


def test_heads_without_names_are_refused_until_they_are_named(tmp_path, features):
    file = save_heads({"fruit": LinearHead(torch.randn(2, DIM))}, tmp_path / "h.safetensors")
    data = data_of(fruit=["fig", "nut"])
    with pytest.raises(InputError, match=r"does not name its classes.*classes=\{'fruit': \['fig'"):
        fitting_heads(str(file), data, ENCODER)
    before = load_heads(file)["fruit"](features)
    save_heads(load_heads(file), file, classes={"fruit": ["nut", "fig"]})
    found = fitting_heads(str(file), data, ENCODER)["fruit"](features)
    assert torch.equal(found, before.flip(1))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("normalised", [True, False])
def test_a_published_head_gives_the_published_modules_logits(
    tmp_path, features, legacy, normalised
):
    module = ClassificationHead(30 * torch.randn(10, DIM), torch.randn(10), normalised)
    publish(module, tmp_path / "head_MNIST.pt", legacy=legacy)
    data = data_of(mnist=[str(n) for n in range(10)])
    head = fitting_heads(str(tmp_path / "head_{task}.pt"), data, ENCODER)["mnist"]
    assert torch.equal(head(features), module(features))
    again = load_heads(save_heads({"mnist": head}, tmp_path / "copy.safetensors"))["mnist"]
    assert torch.equal(again(features), module(features))
    assert again.classes == tuple(data.classes["mnist"])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", "", ".bin"])
def test_a_state_dict_of_a_head_is_taken_as_normalised_and_says_so(tmp_path, features, suffix):
    module = ClassificationHead(torch.randn(10, DIM))
    file = tmp_path / f"head_SVHN{suffix}"
    if suffix == ".pt":
        torch.save(module.state_dict(), file)
    else:
        from safetensors.torch import save_file

        save_file(module.state_dict(), file)
    data = data_of(svhn=[str(n) for n in range(10)])
    with pytest.warns(InputWarning, match=r"head_SVHN.*normalised"):
        head = fitting_heads({"svhn": str(file)}, data, ENCODER)["svhn"]
    assert torch.equal(head(features), module(features))


def names(task):
    return task_spec(task).names


@pytest.mark.parametrize(
    ("task", "spelled"),
    [
        ("gtsrb", [str(n) for n in range(43)]),
        ("gtsrb", [f"{n:05}" for n in range(43)]),
        ("gtsrb", list(task_spec("gtsrb").prompt_names)),
        ("svhn", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]),
        ("cars", [name.replace("/", "-").replace(" ", "_") for name in names("cars")]),
        ("cars", [f"{n:03}_{name}" for n, name in enumerate(names("cars"), 1)]),
        ("sun397", [f"{name[0]}_{name}".replace(" ", "_") for name in names("sun397")]),
        ("sun397", [f"/{name[0]}/{name}".replace(" ", "_") for name in names("sun397")]),
        ("resisc45", [name.replace(" ", "_") for name in names("resisc45")]),
        ("eurosat", list(names("eurosat"))),
        ("eurosat", list(task_spec("eurosat").prompt_names)),
        ("dtd", list(names("dtd"))),
        ("cifar10", list(names("cifar10"))),
        ("fashion_mnist", ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                           "Sneaker", "Bag", "Ankle boot"]),
    ],
)  # fmt: skip
def test_rows_of_a_published_head_go_to_their_classes(tmp_path, task, spelled):
    """Folders come in alphabetical order, rows in that of the data set's labels."""
    bias = torch.arange(float(len(spelled)))  # of class k it is k
    module = ClassificationHead(torch.zeros(len(spelled), DIM), bias)
    publish(module, tmp_path / f"head_{task}.pt")
    data = data_of(**{task: sorted(spelled)})
    head = fitting_heads(str(tmp_path / "head_{task}.pt"), data, ENCODER)[task]
    assert head(torch.ones(1, DIM))[0].tolist() == [spelled.index(n) for n in sorted(spelled)]


@pytest.mark.parametrize(
    ("task", "classes"),
    [("birds", ["kite", "owl"]), ("sun397", ["desert", "kitchen"])],  # unknown, and a part
)
def test_the_order_of_an_unknown_published_head_is_taken_with_a_warning(tmp_path, task, classes):
    file = publish(ClassificationHead(torch.randn(2, DIM)), tmp_path / "x.pt")
    with pytest.warns(InputWarning, match=rf"x\.pt.*2 classes.*'{task}'.*order, {classes[0]}"):
        head = fitting_heads({task: file}, data_of(**{task: classes}), ENCODER)[task]
    assert head.classes == tuple(classes)
    with pytest.raises(InputError, match=r"\(2, 6\).*\(3, 6\)"):
        fitting_heads({task: file}, data_of(**{task: [*classes, "more"]}), ENCODER)


def test_published_heads_of_renamed_classes_are_refused(tmp_path):
    file = publish(ClassificationHead(torch.randn(10, DIM)), tmp_path / "head_EuroSAT.pt")
    names = [*task_spec("eurosat").names[:-1], "Ocean"]
    with pytest.raises(InputError, match="'SeaLake', the data 'Ocean'"):
        fitting_heads({"eurosat": file}, data_of(eurosat=names), ENCODER)


@pytest.mark.parametrize(
    ("task", "files", "found"),
    [
        ("cars", ["head_Cars.pt"], "head_Cars.pt"),
        ("cars", ["head_CarsVal.pt"], "head_CarsVal.pt"),
        ("cars", ["head_CarsVal.pt", "head_Cars.pt"], "head_Cars.pt"),
        ("cars", ["head_StanfordCars.pt"], "head_StanfordCars.pt"),
        ("cars", ["head_Cars.pt", "head_cars.pt"], "head_cars.pt"),
        ("cars", ["head_OldCars.pt"], "head_cars.pt"),
        ("cifar10", ["head_CIFAR10.pt"], "head_CIFAR10.pt"),
        ("fashion_mnist", ["head_FashionMNISTVal.pt"], "head_FashionMNISTVal.pt"),
        ("birds", ["head_Birds.pt"], "head_Birds.pt"),
    ],
)
def test_a_pattern_knows_how_publishers_spell_tasks(tmp_path, task, files, found):
    for file in files:
        (tmp_path / file).touch()
    assert head_files(f"{tmp_path}/head_{{task}}.pt", [task]) == [f"{tmp_path}/{found}"]


def test_a_pattern_of_folders_may_name_the_task_twice(tmp_path):
    (tmp_path / "DTDVal").mkdir()
    (tmp_path / "DTDVal" / "head_DTDVal.pt").touch()
    pattern = f"{tmp_path}/{{task}}/head_{{task}}.pt"
    assert head_files(pattern, ["dtd"]) == [f"{tmp_path}/DTDVal/head_DTDVal.pt"]


def test_a_mapping_mixes_both_kinds_of_files(tmp_path, features):
    ours = LinearHead(torch.randn(2, DIM)).named(["fig", "nut"])
    own = str(save_heads({"fruit": ours}, tmp_path / "own.safetensors"))
    module = ClassificationHead(torch.randn(10, DIM))
    files = {"fruit": own, "mnist": publish(module, tmp_path / "m.pt")}
    data = data_of(fruit=["fig", "nut"], mnist=[str(n) for n in range(10)])
    found = fitting_heads(files, data, ENCODER)
    assert torch.equal(found["mnist"](features), module(features))
    assert torch.equal(found["fruit"](features), ours(features))
    before = heads_hash(files, data.tasks)
    publish(ClassificationHead(torch.randn(10, DIM)), tmp_path / "m.pt")
    assert heads_hash(files, data.tasks) != before


def test_twenty_experts_are_found_as_their_publisher_names_them(tmp_path):
    eight = ("SUN397", "Cars", "RESISC45", "EuroSAT", "SVHN", "GTSRB", "MNIST", "DTD")
    six = ("Flowers102", "PCAM", "FER2013", "OxfordIIITPet", "STL10", "CIFAR100")
    published = (*eight, *six, "CIFAR10", "Food101", "FashionMNIST", "EMNIST", "KMNIST",
                 "RenderedSST2")  # fmt: skip
    for name in published:
        (tmp_path / f"{name}Val").mkdir()
        (tmp_path / f"{name}Val" / "nonlinear_finetuned.pt").touch()
    pattern = f"{tmp_path}/{{task}}/nonlinear_finetuned.pt"
    found = [task_file(pattern, task, "experts") for task in expand_tasks("vision20")]
    assert found == [pattern.replace("{task}", f"{name}Val") for name in published]


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"nut": "x.pt"}, "heads has no file for task 'fruit'"),
        ("nowhere/{task}.pt", r"nowhere/fruit\.pt does not exist"),
        ("{folder}/one.pt", r"one\.pt holds one head.*\{task\}"),
        ({"fruit": "{folder}/weights.pt"}, r"weights\.pt holds no head"),
        ({"fruit": "{folder}/other.safetensors"}, "no head for 'fruit', only for nut"),
    ],
)
def test_files_that_cannot_be_heads(tmp_path, heads, message):
    publish(ClassificationHead(torch.randn(2, DIM)), tmp_path / "one.pt")
    torch.save(
        {"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2)}, tmp_path / "weights.pt"
    )
    save_heads({"nut": LinearHead(torch.ones(2, DIM))}, tmp_path / "other.safetensors")
    place = lambda text: text.replace("{folder}", str(tmp_path))  # noqa: E731
    heads = place(heads) if isinstance(heads, str) else {t: place(f) for t, f in heads.items()}
    with pytest.raises(InputError, match=message):
        fitting_heads(heads, data_of(fruit=["fig", "nut"]), ENCODER)
