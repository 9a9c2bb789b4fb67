"""Checks of the data module's options."""

import unicodedata
from collections.abc import Sequence

from torch import nn

from lightning_merge.core.checkpoints.names import composed, enumerate_names
from lightning_merge.core.errors import InputError


def checked_names(tasks: Sequence[str], root: str) -> tuple[str, ...]:
    """Return the names of tasks in NFC; they name folders, modules and columns.

    Raises:
        InputError: There are none, one is given twice, or one cannot be a name.
    """
    if isinstance(tasks, str):
        raise InputError(f"data.tasks={tasks!r} is one text; give a list: [{tasks}]")
    if not tasks:
        raise InputError(f"data.root={root!r} holds no tasks; name them in data.tasks")
    tasks = tuple(map(composed, tasks))
    if twice := sorted({task for task in tasks if tasks.count(task) > 1}):
        raise InputError(f"data.tasks names {enumerate_names(twice)} twice; name each task once")
    for task in tasks:
        control = any(unicodedata.category(c) in ("Cc", "Cs") for c in task)
        if not task or set(task) & set("/\\.") or control or hasattr(nn.ModuleDict(), task):
            raise InputError(
                f"data.tasks: {task!r} cannot name a task: it is empty, has one of / \\ . or "
                "control characters, is not UTF-8, or is an attribute of torch.nn.ModuleDict; "
                "rename its folder"
            )
    return tasks


def checked_unseen(unseen: Sequence[str], tasks: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the tasks that are evaluated only, in the order of all tasks.

    Raises:
        InputError: One is no task, or no task is left.
    """
    if isinstance(unseen, str):
        raise InputError(f"data.unseen={unseen!r} is one text; give a list: [{unseen}]")
    unseen = tuple(map(composed, unseen))
    if unknown := sorted(set(unseen) - set(tasks)):
        raise InputError(
            f"data.unseen names {enumerate_names(unknown)}, not among data.tasks="
            f"{list(tasks)}; name the tasks to hold out, and all tasks in data.tasks"
        )
    if set(unseen) == set(tasks):
        raise InputError(
            f"data.unseen={list(unseen)} leaves none of data.tasks to fit on; leave one or more out"
        )
    return tuple(task for task in tasks if task in unseen)


def fraction(value: float | str) -> float:
    """Return a share given as a number, a percentage or "all".

    Raises:
        InputError: The value is none of these, or out of (0, 1].
    """
    text = {"all": "100%"}.get(str(value), str(value))
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise InputError(
            f"data.coefficient_fraction={value!r}: use a percentage such as '1%' or '5%', 'all', "
            "or a number in (0, 1]"
        )
    return number
