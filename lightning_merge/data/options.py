"""Checks of the data module's options."""

import unicodedata
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.checks import require_choice
from lightning_merge.core.errors import InputError
from lightning_merge.data.tasks import expand_tasks


def checked_names(
    tasks: str | Sequence[str], root: str, option: str = "data.tasks"
) -> tuple[str, ...]:
    """Return the names of tasks in NFC; they name folders, modules and columns.

    Args:
        tasks: A group of tasks, or names of tasks and groups.
        root: Where they come from, for messages.
        option: Option that gives them, for messages.

    Raises:
        InputError: No name is given, one is given twice, or one is not allowed; or a single name is
            not that of a group.

    Examples:
        >>> checked_names(["cars", "pets"], "data"), len(checked_names("vision14", "data"))
        (('cars', 'pets'), 14)
    """
    if not tasks:
        raise InputError(f"data.root={root!r} holds no tasks; name them in {option}")
    tasks = expand_tasks(tasks, option)
    if twice := sorted({task for task in tasks if tasks.count(task) > 1}):
        raise InputError(f"{option} names {enumerate_names(twice)} twice; name each task once")
    for task in tasks:
        control = any(unicodedata.category(c) in ("Cc", "Cs") for c in task)
        if not task or set(task) & set("/\\.") or control or hasattr(nn.ModuleDict(), task):
            raise InputError(
                f"{option}: {task!r} cannot name a task: it is empty, contains / \\ . or "
                "control characters, is not UTF-8, or is an attribute of torch.nn.ModuleDict; "
                "rename its folder"
            )
    return tasks


def checked_unseen(unseen: str | Sequence[str], tasks: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the tasks that are evaluated only, in the order of all tasks.

    Args:
        unseen: A group of tasks, or names of some tasks and groups.
        tasks: Names of all tasks.

    Raises:
        InputError: A name is not a task, or no task is left to fit on.

    Examples:
        >>> checked_unseen(["pets", "cars"], ("cars", "mnist", "pets"))
        ('cars', 'pets')
    """
    unseen = expand_tasks(unseen, "data.unseen")
    if unknown := sorted(set(unseen) - set(tasks)):
        raise InputError(
            f"data.unseen names {enumerate_names(unknown)}, not among data.tasks="
            f"{list(tasks)}; name the unseen tasks there, too"
        )
    if set(unseen) == set(tasks):
        raise InputError(
            f"data.unseen={list(unseen)} leaves none of data.tasks to fit on; leave one or more out"
        )
    return tuple(task for task in tasks if task in unseen)


def checked_out_of_domain(names: Sequence[str], tasks: Sequence[str], root: str) -> tuple[str, ...]:
    """Return the names of data sets out of the domain of all tasks.

    Args:
        names: Names of data sets and groups.
        tasks: Names of all tasks.
        root: Where they come from, for messages.

    Raises:
        InputError: A name is not allowed, is given twice, or is a task.

    Examples:
        >>> checked_out_of_domain(["flowers"], ("cars", "pets"), "data")
        ('flowers',)
    """
    if not names:
        return ()
    option = "data.out_of_domain"
    names = checked_names(names, root, option)
    if both := [name for name in names if name in tasks]:
        raise InputError(
            f"{option}={list(names)}: {enumerate_names(both)} is in data.tasks, too; what the "
            "networks were trained on is not out of domain, so name it in one of them"
        )
    return names


def check_fit_on(fit_on: str) -> None:
    """Check the images that `fit` sees.

    Raises:
        InputError: They are test examples, or unknown.

    Examples:
        >>> check_fit_on("test")
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: data.fit_on='test': fitting on test examples ...
    """
    if fit_on == "test":
        raise InputError(
            "data.fit_on='test': fitting on test examples would make every reported number "
            "meaningless; use 'train' or 'coefficients'"
        )
    require_choice(("train", "coefficients"), "data.", fit_on=fit_on)


def checked_positions(positions: Tensor, task: str, size: int) -> Tensor:
    """Return the positions of the examples of a task to fit on, ascending and each once.

    Args:
        positions: Positions, int64 [n].
        task: Name of the task, for messages.
        size: Number of its examples.

    Raises:
        InputError: There are none, or one is out of range.

    Examples:
        >>> import torch
        >>> checked_positions(torch.tensor([3, 1, 3]), "pets", 4)
        tensor([1, 3])
    """
    chosen = positions.cpu().unique()
    if not len(chosen):
        raise InputError(
            f"task {task!r}: none of its {size} examples is left to fit on; leave out fewer, or "
            "name the task in data.unseen"
        )
    if chosen[0] < 0 or chosen[-1] >= size:
        raise InputError(
            f"task {task!r}: positions must be in [0, {size}), as it has {size} examples"
        )
    return chosen


def fraction(value: float | str) -> float:
    """Return a share given as a number, a percentage or "all".

    Args:
        value: Share, such as 0.05, "5%" or "all".

    Raises:
        InputError: The value is something else, or not in (0, 1].

    Examples:
        >>> fraction("5%"), fraction("all"), fraction(0.5)
        (0.05, 1.0, 0.5)
    """
    text = {"all": "100%"}.get(str(value), str(value))
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise InputError(
            f"data.coefficient_fraction={value!r}: give a percentage such as '1%' or '5%', 'all', "
            "or a number in (0, 1]"
        )
    return number
