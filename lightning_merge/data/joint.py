"""Joint labels: the union of the classes of several tasks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_merge.data.tasks import task_spec


class JointLabels:
    """The union of the classes of several tasks, numbered from 0.

    Classes of different tasks are one class if their names are equal; a name that one task has
    twice is equal to no other. Names are compared as the words of a prompt (`word` of the task
    table), so the digits of MNIST and SVHN are ten classes and EuroSAT's Forest is SUN397's
    forest, if both are so called. Numbers that name classes of tasks that are not in the table are
    each task's own.
    In the joint setting of KnOTS (Stoica et al. 2024), whose published head has 748 rows for the
    758 classes of eight tasks, only the digits are shared, and scenes of equal name stay apart.

    Args:
        classes: Task -> names of its classes in the order of its labels.

    Attributes:
        size: Number of classes of the union.
        of: Task -> joint label of each of its labels, int64 [C].
        rows: Joint label of each logit of all tasks side by side, int64 [sum of C].

    Examples:
        >>> joint = JointLabels({"mnist": ["0", "1"], "svhn": ["1", "0"], "pets": ["cat", "1"]})
        >>> joint.size, joint.of["svhn"].tolist(), joint.of["pets"].tolist()
        (4, [1, 0], [2, 3])
    """

    def __init__(self, classes: Mapping[str, Sequence[str]]) -> None:
        numbers: dict[str, int] = {}
        self.of: dict[str, Tensor] = {}
        for task, names in classes.items():
            keys = [_key(task, name) for name in names]
            unique = [
                f"{task} {place} {key}" if keys.count(key) > 1 else key
                for place, key in enumerate(keys)
            ]
            self.of[task] = torch.tensor([numbers.setdefault(k, len(numbers)) for k in unique])
        self.size = len(numbers)
        self.rows = torch.cat([*self.of.values()])

    def predicted(self, logits: Tensor) -> Tensor:
        """Return the joint labels [n] of the highest of the logits [n, sum of C]."""
        return self.rows.to(logits.device)[logits.argmax(1)]

    def true(self, task: str, labels: Tensor) -> Tensor:
        """Return the joint labels of a task's labels [n]."""
        return self.of[task].to(labels.device)[labels]


def _key(task: str, name: str) -> str:
    """Return what equal classes of different tasks have in common."""
    spec = task_spec(task)
    word, known = spec.word(name).casefold(), isinstance(spec.identity(name), int)
    return f"{task} {word}" if word.isdecimal() and not known else word
