import pytest

from lightning_merge.data.tasks import TASKS, TaskSpec, task_spec

EIGHT = ("sun397", "cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")


def test_the_table_has_the_eight_and_two_out_of_domain():
    assert tuple(TASKS) == (*EIGHT, "cifar10", "fashion_mnist")
    counts = [TASKS[name].classes for name in EIGHT]
    assert counts == [397, 196, 45, 10, 10, 43, 10, 47]


@pytest.mark.parametrize("spec", TASKS.values(), ids=TASKS)
def test_every_row_is_whole(spec):
    assert all(template.count("{}") == 1 for template in spec.templates)
    assert spec.torchvision
    assert spec.hub.path
    assert "<data.root>" in spec.obtain
    assert "\n" not in spec.summary
    assert spec.title in spec.summary
    assert len(set(spec.words.values())) == len(spec.words)
    for alias in (spec.name, *spec.aliases):
        assert task_spec(alias) is spec


@pytest.mark.parametrize(
    ("task", "label", "word"),
    [
        ("mnist", "7", "7"),
        ("mnist", "7 - seven", "7"),
        ("svhn", "0", "0"),
        ("gtsrb", "14", "red octagon: stop"),
        ("gtsrb", "00", "red and white circle with 20: speed limit 20 km/h"),
        ("gtsrb", "00041", "white circle with grey cars crossed out: end of no overtaking"),
        ("gtsrb", "stop", "stop"),
        ("eurosat", "AnnualCrop", "annual crop land"),
        ("eurosat", "Forest", "forest"),
        ("eurosat", "annual crop land", "annual crop land"),
        ("sun397", "/a/abbey", "abbey"),
        ("sun397", "/a/apse/indoor", "apse indoor"),
        ("sun397", "baseball_field", "baseball field"),
        ("cars", "008_Aston_Martin_V8_Vantage_Convertible_2012",
         "Aston Martin V8 Vantage Convertible 2012"),
        ("cars", "McLaren MP4-12C Coupe 2012", "McLaren MP4-12C Coupe 2012"),
        ("resisc45", "commercial_area", "commercial area"),
        ("dtd", "polka-dotted", "polka-dotted"),
        ("fashion_mnist", "9", "ankle boot"),
        ("fashion_mnist", "T-shirt/top", "T-shirt top"),
        ("my_birds", "RedKite", "red kite"),
        ("my_birds", "3", "3"),
    ],
)  # fmt: skip
def test_a_class_becomes_words(task, label, word):
    assert task_spec(task).word(label) == word


def test_mirroring_spares_what_is_read():
    assert {name for name, spec in TASKS.items() if not spec.mirror} == {"svhn", "gtsrb", "mnist"}
    assert not task_spec("my_letters").mirror


def test_prompts_of_a_task_without_a_row():
    assert task_spec("my_birds").prompts(["RedKite"]) == (("red kite",), ("a photo of a {}.",))


def test_one_row_is_a_task():
    assert TaskSpec("mine").summary == "mine, any classes; from folders"
