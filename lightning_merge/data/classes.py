"""Names of classes: one spelling, and the same order in train and test."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from lightning_merge.core.checkpoints.names import composed, enumerate_names
from lightning_merge.core.errors import InputError, warn
from lightning_merge.data.examples import Examples


def checked(task: str, split: str, examples: Examples) -> Examples:
    """Return the examples with composed class names (NFC), as Linux and Windows have them.

    Raises:
        InputError: Two names are one then, or a label is no number of a class.
    """
    names = tuple(map(composed, examples.classes))
    spelled = zip(examples.classes, names, strict=True)
    if twice := [ascii(name) for name, plain in spelled if names.count(plain) > 1]:
        raise InputError(
            f"task {task!r}: {split} has classes whose names are one name in several Unicode "
            f"forms: {enumerate_names(twice)}; put their images into one class"
        )
    labels = examples.labels
    if wrong := labels[(labels < 0) | (labels >= len(names))].unique().tolist():
        raise InputError(
            f"task {task!r}: {split} has the labels {enumerate_names([*map(str, wrong)], 5)}, but "
            f"{len(names)} classes, numbered from 0; leave out images without a class"
        )
    return replace(examples, classes=names)


def in_order_of(train: Sequence[str], task: str, test: Examples) -> Examples:
    """Return test examples with the classes of train, some of which may have no test image.

    Args:
        train: The classes, in the order of the labels.
        task: Name of the task, for messages.
        test: As `checked` returns them.

    Raises:
        InputError: A class is in test alone.
    """
    number = {name: i for i, name in enumerate(train)}
    if foreign := [name for name in test.classes if name not in number]:
        raise InputError(
            f"task {task!r}: train and test differ in their classes: only test has "
            f"{enumerate_names(foreign)}, train has {enumerate_names(train, 5)}. Give both the same"
        )
    renumbered = torch.tensor([number[name] for name in test.classes], dtype=torch.long)
    test = replace(test, classes=tuple(train), labels=renumbered[test.labels])
    seen = Counter(test.labels.tolist())
    if absent := [name for name, i in number.items() if not seen[i]]:
        warn(
            f"task {task!r}: test has no image of {len(absent)} of {len(train)} classes "
            f"({enumerate_names(absent, 5)}); its accuracy is that of the others"
        )
    return test
