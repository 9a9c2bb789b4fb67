"""What the task table says about a task."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from lightning_merge.core.checkpoints.names import composed
from lightning_merge.data.layouts import HubLayout, TorchvisionLayout
from lightning_merge.data.text.layouts import TableLayout, TextForm

Metric = Literal["accuracy", "matthews", "f1", "auc", "spearman"]
Words = Mapping[str, str]


@dataclass(frozen=True)
class TaskSpec:
    """Facts about a task beside its examples; every field but the name has a default.

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
        table: Layout that source "tables" reads, for tasks of text.
        text: What a network sees of an example of text.
        metric: What the field measures beside accuracy.
        hub: Layout that source "huggingface" reads.
        aliases: Other names of the task.
        clip_benchmark: Key of the task in the files of clip-benchmark, if they have prompts for it.
        note: What a reader of its numbers must know; tables have it below them.
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
    table: TableLayout | None = None
    text: TextForm | None = None
    metric: Metric = "accuracy"
    hub: HubLayout = field(default_factory=HubLayout)
    aliases: tuple[str, ...] = ()
    clip_benchmark: str = ""
    note: str = ""
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
        sources = ["folders"] if self.text is None else []
        if self.table:
            sources.append(f"tables ({', '.join((*self.table.train, *self.table.test))})")
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


TRAIN_TEST: dict[str, Any] = {"train": ({"split": "train"},), "test": ({"split": "test"},)}
"""Arguments of torchvision's data sets that take a split."""
IDX: dict[str, Any] = {"train": ({"train": True},), "test": ({"train": False},)}
"""Arguments of torchvision's data sets that take `train`."""
DIGIT = ('a photo of the number: "{}".',)


def numbered(words: Sequence[str]) -> dict[str, str]:
    """Return the words of numbered classes by number.

    Examples:
        >>> numbered(["zero", "one"])
        {'0': 'zero', '1': 'one'}
    """
    return {str(number): word for number, word in enumerate(words)}


def numbers(count: int, width: int = 0) -> tuple[str, ...]:
    """Return the names of numbered classes, with leading zeros up to a width.

    Examples:
        >>> numbers(3), numbers(2, width=2)
        (('0', '1', '2'), ('00', '01'))
    """
    return tuple(str(number).zfill(width) for number in range(count))
