"""The task table: one row per task; nothing else in the code knows a task by name."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from lightning_merge.core.checkpoints.names import composed
from lightning_merge.data import class_names
from lightning_merge.data.layouts import HubLayout, TorchvisionLayout, Undivided

Words = Mapping[str, str]


@dataclass(frozen=True)
class TaskSpec:
    """Facts about a task beside its images; every field but the name has a default.

    Args:
        name: The task's name in configs, folders and tables.
        title: Its name in papers.
        classes: Number of classes of the full data set.
        mirror: Whether a mirrored image keeps its class (not for digits and traffic signs).
        templates: Prompts of zero-shot heads, with {} in place of the class.
        words: Class name (a number without leading zeros) -> its words in a prompt, for names that
            `word` would not convert.
        names: Class names in the order of the full data set's labels and of the rows of published
            heads.
        prompt_names: The same classes in the words of published prompts, if these differ.
        lead: Regular expression of what the data set puts in front of a class name.
        torchvision: Layout that source "torchvision" reads.
        hub: Layout that source "huggingface" reads.
        aliases: Other names of the task.
        obtain: How to get the data, and their terms of use.

    Examples:
        >>> pets = TaskSpec("pets", words={"n01": "tabby cat"})
        >>> pets.prompts(["n01", "GreatDane"])
        (('tabby cat', 'great dane'), ('a photo of a {}.',))
    """

    name: str
    title: str = ""
    classes: int | None = None
    mirror: bool = False
    templates: tuple[str, ...] = ("a photo of a {}.",)
    words: Words = field(default_factory=dict)
    names: tuple[str, ...] = ()
    prompt_names: tuple[str, ...] = ()
    lead: str = r"/\w/|\d+[_ .](?=\D)"
    torchvision: TorchvisionLayout | None = None
    hub: HubLayout = field(default_factory=HubLayout)
    aliases: tuple[str, ...] = ()
    obtain: str = "Put your images there, or leave the task out."

    def word(self, label: str) -> str:
        """Return the words of a prompt for a class name, however folders and data sets spell it.

        "0 - zero" and "00" are the number 0; "/a/abbey" (and SUN397's "a_abbey"),
        "008_Aston_Martin" and "SeaLake" become "abbey", "Aston Martin" and "sea lake".
        """
        label = composed(label)
        if number := re.fullmatch(r"(\d+)(?: - .*)?", label):
            label = str(int(number[1]))
        if label in self.words:
            return self.words[label]
        spoken = label[match.end() :] if (match := re.match(self.lead, label)) else label
        if re.fullmatch(r"[A-Za-z]+", spoken):
            spoken = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", spoken).lower()
        return re.sub(r"[_/ ]+", " ", spoken).strip()

    def prompts(self, classes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the words of the classes, and the templates, for zero-shot heads."""
        return tuple(map(self.word, classes)), self.templates

    def rows(self, stored: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
        """Return the position of each wanted class among the stored ones.

        Names that differ only in their Unicode form are equal, and so are whole numbers that
        differ only in leading zeros. For tasks of the table, the spellings of torchvision, the
        Hub, folders and published prompts are equal: "/a/abbey", "a_abbey" and "abbey".

        Args:
            stored: Class names of a head.
            wanted: Class names of the data.

        Returns:
            Positions in `stored`, one for each name in `wanted`; None if the classes differ.
        """
        kinds: tuple[Callable[[str], Any], ...] = (composed, _number, self.identity)
        for kind in kinds:
            places = {kind(name): place for place, name in enumerate(stored)}
            order = [kind(name) for name in wanted]
            if len(places) == len(stored) == len(set(order)) and set(order) == set(places):
                return [places[name] for name in order]
        return None

    def identity(self, label: str) -> str | int:
        """Return the number of a class in the table, or the name itself if it has none."""
        label = _number(label)
        spellings = (_letters(label), _letters(self.word(label)))
        return next((self._known[text] for text in spellings if text in self._known), label)

    @cached_property
    def _known(self) -> dict[str, int]:
        """Numbers of the classes of the table, by spelling."""
        lists = (self.names, self.prompt_names, tuple(map(self.word, self.names)))
        return {_letters(name): number for names in lists for number, name in enumerate(names)}

    @property
    def summary(self) -> str:
        """Description in one line, for `list`."""
        sources = ["folders"]
        if self.torchvision:
            sources.append("torchvision")
        if self.hub.path:
            sources.append(f"huggingface ({self.hub.path})")
        number = f"{self.classes} classes" if self.classes else "any classes"
        return f"{self.title or self.name}, {number}; from {', '.join(sources)}"


def _number(name: str) -> str:
    """Return a whole number without leading zeros, and any other name unchanged."""
    name = composed(name)
    return str(int(name)) if re.fullmatch(r"[0-9]+", name) else name


def _letters(name: str) -> str:
    """Return the letters and digits of a name."""
    return re.sub(r"[\W_]", "", name.casefold())


_TRAIN_TEST: dict[str, Any] = {"train": ({"split": "train"},), "test": ({"split": "test"},)}
_IDX: dict[str, Any] = {"train": ({"train": True},), "test": ({"train": False},)}
_DIGIT = ('a photo of the number: "{}".',)


def _numbered(words: Sequence[str]) -> dict[str, str]:
    return {str(number): word for number, word in enumerate(words)}


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


_ROWS = (
    TaskSpec(
        "sun397",
        title="SUN397",
        classes=397,
        mirror=True,
        templates=("a photo of a {}.", "a photo of the {}."),
        names=class_names.SUN397,
        lead=r"/?(\w)[/_](?=\1)|/\w/",
        torchvision=TorchvisionLayout(
            "SUN397", undivided=Undivided(0.5, ("Training_01.txt",), ("Testing_01.txt",))
        ),
        hub=HubLayout("tanganke/sun397"),
        obtain="SUN397 can no longer be fetched through torchvision: ask Princeton's vision group "
        "for SUN397.tar.gz and unpack it to <data.root>/SUN397, or use data.source=huggingface. "
        "For research only.",
    ),
    TaskSpec(
        "cars",
        title="Stanford Cars",
        classes=196,
        mirror=True,
        templates=("a photo of a {}.", "a photo of the {}.", "a photo of my {}, a car."),
        names=class_names.CARS,
        torchvision=TorchvisionLayout("StanfordCars", **_TRAIN_TEST),
        hub=HubLayout("tanganke/stanford_cars"),
        aliases=("stanford_cars", "stanford-cars"),
        obtain="Stanford no longer serves the cars: put cars_train, cars_test, devkit and "
        "cars_test_annos_withlabels.mat of a copy into <data.root>/stanford_cars, or use "
        "data.source=huggingface. For research only.",
    ),
    TaskSpec(
        "resisc45",
        title="RESISC45",
        classes=45,
        mirror=True,
        templates=(
            "satellite imagery of {}.",
            "aerial imagery of {}.",
            "satellite photo of a {}.",
            "aerial photo of a {}.",
            "aerial view of the {}.",
        ),
        names=class_names.RESISC45,
        torchvision=TorchvisionLayout(
            "ImageFolder",
            folder="NWPU-RESISC45",
            undivided=Undivided(
                0.2, ("resisc45-train.txt", "resisc45-val.txt"), ("resisc45-test.txt",)
            ),
        ),
        hub=HubLayout("tanganke/resisc45"),
        aliases=("resisc",),
        obtain="Ask the authors of NWPU-RESISC45 for the archive and unpack it to "
        "<data.root>/NWPU-RESISC45/<class>/, or use data.source=huggingface. For research only.",
    ),
    TaskSpec(
        "eurosat",
        title="EuroSAT",
        classes=10,
        mirror=True,
        templates=(
            "a centered satellite photo of {}.",
            "a centered satellite photo of a {}.",
            "a centered satellite photo of the {}.",
        ),
        words=class_names.EUROSAT_WORDS,
        names=class_names.EUROSAT,
        prompt_names=class_names.EUROSAT_PROMPTS,
        torchvision=TorchvisionLayout(
            "EuroSAT",
            undivided=Undivided(
                0.1, ("eurosat-train.txt", "eurosat-val.txt"), ("eurosat-test.txt",)
            ),
        ),
        hub=HubLayout("tanganke/eurosat"),
        obtain="torchvision.datasets.EuroSAT(root, download=True) fetches it to "
        "<data.root>/eurosat/2750 (MIT license).",
    ),
    TaskSpec(
        "svhn",
        title="SVHN",
        classes=10,
        templates=_DIGIT,
        names=_numbers(10),
        prompt_names=class_names.DIGITS,
        torchvision=TorchvisionLayout("SVHN", **_TRAIN_TEST),
        hub=HubLayout("ufldl-stanford/svhn", config="cropped_digits"),
        obtain="torchvision.datasets.SVHN(root, split, download=True) fetches train_32x32.mat and "
        "test_32x32.mat to <data.root>. For non-commercial use only.",
    ),
    TaskSpec(
        "gtsrb",
        title="GTSRB",
        classes=43,
        templates=(
            "a zoomed in photo of a traffic sign, {}.",
            "a centered photo of a traffic sign, {}.",
            "a close up photo of a traffic sign, {}.",
        ),
        words=_numbered(class_names.GTSRB_WORDS),
        names=_numbers(43),
        prompt_names=class_names.GTSRB_PROMPTS,
        torchvision=TorchvisionLayout("GTSRB", **_TRAIN_TEST),
        hub=HubLayout("tanganke/gtsrb"),
        obtain="torchvision.datasets.GTSRB(root, split, download=True) fetches it to "
        "<data.root>/gtsrb (CC0).",
    ),
    TaskSpec(
        "mnist",
        title="MNIST",
        classes=10,
        templates=_DIGIT,
        names=_numbers(10),
        prompt_names=class_names.DIGITS,
        torchvision=TorchvisionLayout("MNIST", **_IDX),
        hub=HubLayout("ylecun/mnist"),
        obtain="torchvision.datasets.MNIST(root, download=True) fetches the four idx files to "
        "<data.root>/MNIST/raw and unpacks them (CC BY-SA 3.0).",
    ),
    TaskSpec(
        "dtd",
        title="DTD",
        classes=47,
        mirror=True,
        templates=(
            "a photo of a {} texture.",
            "a photo of a {} pattern.",
            "a photo of a {} thing.",
            "a photo of the {} texture.",
            "a photo of the {} pattern.",
        ),
        names=class_names.DTD,
        torchvision=TorchvisionLayout(
            "DTD", train=({"split": "train"}, {"split": "val"}), test=({"split": "test"},)
        ),
        hub=HubLayout("tanganke/dtd"),
        obtain="torchvision.datasets.DTD(root, download=True) fetches it to <data.root>/dtd. "
        "For research only.",
    ),
    TaskSpec(
        "cifar10",
        title="CIFAR-10",
        classes=10,
        mirror=True,
        templates=("a photo of a {}.", "a blurry photo of a {}.", "a photo of the small {}."),
        names=class_names.CIFAR10,
        torchvision=TorchvisionLayout("CIFAR10", **_IDX),
        hub=HubLayout("uoft-cs/cifar10", image="img"),
        obtain="torchvision.datasets.CIFAR10(root, download=True) fetches it to "
        "<data.root>/cifar-10-batches-py. For research.",
    ),
    TaskSpec(
        "fashion_mnist",
        title="Fashion-MNIST",
        classes=10,
        mirror=True,
        templates=("a photo of a {}.", "a grey photo of a {} on black ground."),
        words=_numbered(class_names.FASHION_MNIST_WORDS),
        names=_numbers(10),
        prompt_names=class_names.FASHION_MNIST,
        torchvision=TorchvisionLayout("FashionMNIST", **_IDX),
        hub=HubLayout("zalando-datasets/fashion_mnist"),
        obtain="torchvision.datasets.FashionMNIST(root, download=True) fetches the four idx files "
        "to <data.root>/FashionMNIST/raw and unpacks them (MIT license).",
    ),
)

TASKS: Mapping[str, TaskSpec] = MappingProxyType({row.name: row for row in _ROWS})
_BY_ANY_NAME = {name: row for row in _ROWS for name in (row.name, *row.aliases)}


def task_spec(name: str) -> TaskSpec:
    """Return the row of a task; a user's own task has a row of defaults.

    Examples:
        >>> task_spec("stanford-cars").name, task_spec("pets").templates
        ('cars', ('a photo of a {}.',))
    """
    return _BY_ANY_NAME.get(name, TaskSpec(name))
