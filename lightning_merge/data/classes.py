"""Class names: one spelling, and one order for train and test."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from lightning_merge.core.checkpoints.names import composed, enumerate_names
from lightning_merge.core.errors import InputError, warn
from lightning_merge.data.examples import Examples


def checked(task: str, split: str, examples: Examples) -> Examples:
    """Return the examples with composed class names (NFC), as Linux and Windows spell them.

    Args:
        task: Name of the task, for messages.
        split: "train" or "test", for messages.
        examples: The split.

    Raises:
        InputError: Two names become equal, or a label is not the number of a class.

    Examples:
        >>> from unicodedata import normalize
        >>> import numpy as np
        >>> from lightning_merge.data.examples import array_examples
        >>> images = array_examples([normalize("NFD", "café")], [0], np.zeros((1, 8, 8), np.uint8))
        >>> checked("shops", "train", images).classes == ("café",)
        True
    """
    names = tuple(map(composed, examples.classes))
    spelled = zip(examples.classes, names, strict=True)
    if twice := [ascii(name) for name, plain in spelled if names.count(plain) > 1]:
        raise InputError(
            f"task {task!r}: {split} has class names that differ only in their Unicode form: "
            f"{enumerate_names(twice)}; put their images into one class"
        )
    labels = examples.labels
    if wrong := labels[(labels < 0) | (labels >= len(names))].unique().tolist():
        raise InputError(
            f"task {task!r}: {split} has the labels {enumerate_names([*map(str, wrong)], 5)}, but "
            f"its {len(names)} classes are numbered from 0; leave out images without a class"
        )
    return replace(examples, classes=names)


def in_order_of(train: Sequence[str], task: str, test: Examples) -> Examples:
    """Return test examples with the classes of train; classes without test images get a warning.

    Args:
        train: Classes of train, in the order of the labels.
        task: Name of the task, for messages.
        test: Examples that `checked` returned.

    Raises:
        InputError: A class occurs only in test.

    Examples:
        >>> import numpy as np
        >>> from lightning_merge.data.examples import array_examples
        >>> test = array_examples(["dog", "cat"], [0, 1], np.zeros((2, 8, 8), np.uint8))
        >>> in_order_of(["cat", "dog"], "pets", test).labels
        tensor([1, 0])
    """
    number = {name: i for i, name in enumerate(train)}
    if foreign := [name for name in test.classes if name not in number]:
        raise InputError(
            f"task {task!r}: train and test differ in their classes: only test has "
            f"{enumerate_names(foreign)}, train has {enumerate_names(train, 5)}; give both the same"
        )
    renumbered = torch.tensor([number[name] for name in test.classes], dtype=torch.long)
    test = replace(test, classes=tuple(train), labels=renumbered[test.labels])
    seen = Counter(test.labels.tolist())
    if absent := [name for name, i in number.items() if not seen[i]]:
        warn(
            f"task {task!r}: test has no example of {len(absent)} of {len(train)} classes "
            f"({enumerate_names(absent, 5)}); its accuracy is that of the others"
        )
    return test
