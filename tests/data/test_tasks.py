import pytest

from lightning_merge.core.errors import InputError
from lightning_merge.data.tasks import GROUPS, TASKS, TaskSpec, expand_tasks, task_spec

EIGHT = ("sun397", "cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")


def test_the_table_has_the_tasks_of_the_papers():
    counts = [TASKS[name].classes for name in EIGHT]
    assert counts == [397, 196, 45, 10, 10, 43, 10, 47]
    counts = [TASKS[name].classes for name in GROUPS["lwptv_ood"]]  # appendix B.3, in another order
    assert sorted(counts) == sorted([100, 10, 102, 37, 2, 7, 10, 10, 101, 10, 2, 10, 1000])


IMAGES = {name: spec for name, spec in TASKS.items() if spec.text is None}


def test_groups_are_tasks_of_the_table():
    assert GROUPS["vision8"] == EIGHT
    assert {name: len(tasks) for name, tasks in GROUPS.items()} == {
        "vision8": 8, "vision14": 14, "vision20": 20, "vision20_letters": 20, "lwptv_ood": 13,
        "text8": 8, "glue8": 8, "t5_7": 7, "t5_ood": 8,
    }  # fmt: skip
    assert all(set(tasks) <= set(TASKS) for tasks in GROUPS.values())
    assert not set(GROUPS) & set(TASKS)
    differ = set(GROUPS["vision20"]) ^ set(GROUPS["vision20_letters"])
    assert differ == {"emnist_digits", "emnist_letters"}
    assert all(TASKS[name].note for name in differ)
    assert task_spec("emnist").name == "emnist_digits"


def test_groups_stand_for_their_tasks():
    assert expand_tasks("vision8") == EIGHT
    assert expand_tasks(["pets", "vision8"]) == ("pets", *EIGHT)
    with pytest.raises(InputError, match=r"data\.unseen='vision9' is not a group .*\[vision9\]"):
        expand_tasks("vision9", "data.unseen")


@pytest.mark.parametrize("spec", TASKS.values(), ids=TASKS)
def test_every_row_is_whole(spec):
    assert all(template.count("{}") == 1 for template in spec.templates)
    if spec.text is None:
        assert spec.torchvision
        assert bool(spec.hub.path) == (spec.name != "emnist_digits")
        assert "<data.root>" in spec.obtain
    else:
        assert spec.table or spec.hub.path
        assert spec.obtain
    assert "\n" not in spec.summary
    assert spec.title in spec.summary
    twice = 2 if spec.name == "imagenet" else 0  # missile and sunglasses
    assert len(set(spec.words.values())) == len(spec.words) - twice
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
        ("sun397", "a_abbey", "abbey"),
        ("sun397", "abbey", "abbey"),
        ("sun397", "c_church_indoor", "church indoor"),
        ("sun397", "b_bow_window_indoor", "bow window indoor"),
        ("my_clothes", "t_shirt", "t shirt"),
        ("my_clothes", "x_xylophone", "x xylophone"),
        ("sun397", "baseball_field", "baseball field"),
        ("cars", "008_Aston_Martin_V8_Vantage_Convertible_2012",
         "Aston Martin V8 Vantage Convertible 2012"),
        ("cars", "McLaren MP4-12C Coupe 2012", "McLaren MP4-12C Coupe 2012"),
        ("resisc45", "commercial_area", "commercial area"),
        ("dtd", "polka-dotted", "polka-dotted"),
        ("fashion_mnist", "9", "ankle boot"),
        ("fashion_mnist", "T-shirt/top", "T-shirt top"),
        ("kmnist", "2", "su"),
        ("emnist_letters", "Q", "Q"),
        ("flowers", "060_pink-yellow_dahlia", "pink-yellow dahlia"),
        ("flowers102", "globe-flower", "globe-flower"),
        ("cifar100", "cra", "crab"),
        ("oxford-iiit-pet", "english_cocker_spaniel", "english cocker spaniel"),
        ("food", "apple_pie", "apple pie"),
        ("imagenet", "n01440764", "tench"),
        ("my_birds", "RedKite", "red kite"),
        ("my_birds", "3", "3"),
    ],
)  # fmt: skip
def test_a_class_becomes_words(task, label, word):
    assert task_spec(task).word(label) == word


@pytest.mark.parametrize("form", ["/{0}/{1}", "{0}_{1}", "{0}/{1}", "{1}"])
@pytest.mark.parametrize("space", ["_", "/"])
def test_all_of_sun397_has_the_same_words_in_every_spelling(form, space):
    spec = task_spec("sun397")
    labels = [form.format(name[0], name.replace(" ", space)) for name in spec.names]
    assert [spec.word(label) for label in labels] == list(spec.names)
    assert spec.rows(spec.names, labels) == list(range(397))


@pytest.mark.parametrize("spec", IMAGES.values(), ids=IMAGES)
def test_names_of_a_row_are_all_its_classes(spec):
    assert len(spec.names) == spec.classes
    assert len(spec.prompt_names) in (0, spec.classes)
    words = [spec.word(name) for name in spec.names]
    for spelling in (spec.names, spec.prompt_names, words if spec.name != "imagenet" else ()):
        assert [spec.identity(name) for name in spelling] == list(range(len(spelling)))


def test_names_in_alphabetical_order_are_those_of_folders():
    """As torchvision and the publishers number them; cars follow the devkit."""
    for task in ("sun397", "resisc45", "eurosat", "dtd", "cifar10", "cifar100", "food101", "stl10",
                 "oxford_pets", "rendered_sst2", "imagenet"):  # fmt: skip
        assert list(task_spec(task).names) == sorted(task_spec(task).names)
    cars = task_spec("cars").names
    assert (cars[0], cars[5], cars[-1]) == (
        "AM General Hummer SUV 2000",
        "Acura Integra Type R 2001",
        "smart fortwo Convertible 2012",
    )


@pytest.mark.shared
@pytest.mark.parametrize(
    "task", ["cars", "dtd", "eurosat", "gtsrb", "cifar10", "mnist", "fashion_mnist", "food"]
)
def test_folders_of_real_data_are_known(shared, task):
    found = sorted(place.name for place in (shared / "data" / task / "test").iterdir())
    numbers = [task_spec(task).identity(name) for name in found]
    assert all(isinstance(number, int) for number in numbers)
    if task == "cars":  # the folders' numbers count from 1
        assert numbers == [int(name[:3]) - 1 for name in found]


def test_mirroring_spares_what_is_read():
    read = {"svhn", "gtsrb", "mnist", "kmnist", "emnist_digits", "emnist_letters", "rendered_sst2"}
    assert {name for name, spec in IMAGES.items() if not spec.mirror} == read
    assert not task_spec("my_letters").mirror


def test_imagenet_is_named_alike_by_two_publishers():
    """Position by position, so that the words of open_clip belong to the WordNet ids."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES as theirs

    spec = task_spec("imagenet")
    same = [
        spec.word(w).lower() == name.lower() for w, name in zip(spec.names, theirs, strict=True)
    ]
    assert sum(same) > 700
    assert all(any(same[start : start + 20]) for start in range(0, 1000, 20))


def test_the_faces_of_the_hub_are_in_another_order():
    spec = task_spec("fer2013")
    assert spec.rows(spec.names, spec.hub.classes) == [0, 1, 2, 3, 6, 4, 5]


def test_prompts_of_a_task_without_a_row():
    assert task_spec("my_birds").prompts(["RedKite"]) == (("red kite",), ("a photo of a {}.",))


def test_one_row_is_a_task():
    assert TaskSpec("mine").summary == "mine, any classes; from folders"
