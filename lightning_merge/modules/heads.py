"""Heads of the tasks of a data module, in the order of the data's classes."""

import hashlib
from collections.abc import Mapping, Sequence

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.checkpoints.digests import file_hash
from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.errors import InputError, warn
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.data.tasks import TaskSpec, task_spec
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.head_files import load_heads
from lightning_merge.models.heads import Head
from lightning_merge.modules.task_files import TASK, task_file

PROMPTS = "prompts/"
"""Prefix, before a task's name, of the metadata key for whose prompts a zero-shot head has."""

HeadFiles = str | dict[str, str]
"""File of the heads of all tasks, pattern of a file for each task with {task}, or a mapping."""


def by_task(heads: HeadFiles) -> bool:
    """Whether each task has its own file of heads; such files must exist, as none is made.

    Examples:
        >>> by_task("head_{task}.pt"), by_task("heads.safetensors")
        (True, False)
    """
    return not isinstance(heads, str) or TASK in heads


def head_file(heads: HeadFiles, task: str) -> str:
    """Return the file that holds a task's head.

    Args:
        heads: Files of heads.
        task: Name of the task.

    Raises:
        InputError: A mapping lacks the task.

    Examples:
        >>> head_file("head_{task}.pt", "cars"), head_file("heads.safetensors", "cars")
        ('head_cars.pt', 'heads.safetensors')
    """
    if isinstance(heads, str) and not by_task(heads):
        return heads
    return task_file(heads, task, "heads")


def head_files(heads: HeadFiles, tasks: Sequence[str]) -> list[str]:
    """Return the files that hold the heads of some tasks, without duplicates.

    Examples:
        >>> head_files("heads.safetensors", ["cars", "pets"])
        ['heads.safetensors']
    """
    return list(dict.fromkeys(head_file(heads, task) for task in tasks))


def check_heads(option: str, heads: HeadFiles, tasks: Sequence[str]) -> None:
    """Check that the files of heads exist.

    Args:
        option: Option that names the files, for messages.
        heads: Files of heads.
        tasks: Tasks whose heads are needed.

    Raises:
        InputError: A file is missing.

    Examples:
        >>> check_heads("model.heads", "nowhere.safetensors", ["cars"])
        Traceback (most recent call last):
        lightning_merge.core.errors.InputError: model.heads: nowhere.safetensors does not ...
    """
    for file in head_files(heads, tasks):
        if not hub.exists(file):
            raise InputError(
                f"{option}: {file} does not exist; `fit` makes it with a config whose model.zoo "
                f"has heads: {heads}"
            )


def heads_hash(heads: HeadFiles, tasks: Sequence[str]) -> str:
    """Return the SHA-256 of the file of heads; of several files, that of the list of theirs.

    Examples:
        >>> from pathlib import Path
        >>> Path("empty.safetensors").touch()
        >>> heads_hash("empty.safetensors", ["cars"])[:8]
        'e3b0c442'
    """
    if isinstance(heads, str) and not by_task(heads):
        return file_hash(heads)
    lines = "".join(f"{file_hash(head_file(heads, task))}  {task}\n" for task in tasks)
    return hashlib.sha256(lines.encode()).hexdigest()


def open_heads(heads: HeadFiles, tasks: Sequence[str]) -> Mapping[str, Head]:
    """Read the heads of some tasks; from a single file, all its heads.

    Args:
        heads: Files of heads.
        tasks: Tasks whose heads are needed.

    Raises:
        InputError: A file is missing, unreadable or not a file of heads, or lacks its task.

    Examples:
        >>> import torch
        >>> from lightning_merge.models import class_mean_head, save_heads
        >>> head = class_mean_head(torch.eye(2), torch.arange(2), 2, classes=["cat", "dog"])
        >>> file = save_heads({"pets": head}, "heads.safetensors")
        >>> open_heads("heads.safetensors", ["pets"])["pets"].classes
        ('cat', 'dog')
    """
    if isinstance(heads, str) and not by_task(heads):
        return load_heads(heads)
    return load_heads({task: head_file(heads, task) for task in tasks})


def wordings(heads: HeadFiles, tasks: Sequence[str]) -> dict[str, str]:
    """Return whose prompts the heads of tasks were made with, as their files say.

    Args:
        heads: Files of heads.
        tasks: Names of tasks.

    Returns:
        Task -> the wording. Tasks are missing whose heads were made without prompts, and those of
        published heads, which do not say it.

    Examples:
        >>> import torch
        >>> from lightning_merge.models import class_mean_head, save_heads
        >>> head = class_mean_head(torch.eye(2), torch.arange(2), 2, classes=["cat", "dog"])
        >>> said = {"prompts/pets": "own wording"}
        >>> file = save_heads({"pets": head}, "heads.safetensors", metadata=said)
        >>> wordings("heads.safetensors", ["pets"])
        {'pets': 'own wording'}
    """
    found = {task: open_checkpoint(head_file(heads, task)).metadata for task in tasks}
    keys = {task: f"{PROMPTS}{task}" for task in tasks}
    return {task: found[task][key] for task, key in keys.items() if key in found[task]}


def fitting_heads(
    heads: HeadFiles,
    data: MergeDataModule,
    encoder: Encoder,
    tasks: Sequence[str] | None = None,
) -> dict[str, Head]:
    """Return one head per task, with logits in the order of the data's classes.

    Classes are compared by name, see `TaskSpec.rows`. Published files do not name classes: the
    task table names those of its tasks, and heads of other tasks are assumed to have the data's
    order.

    Args:
        heads: Files of heads.
        data: Data module that has been loaded.
        encoder: Encoder that makes the features.
        tasks: Tasks of the data that need a head; by default those that are not out of domain.

    Raises:
        InputError: A file cannot be read, or a head is missing, does not fit, has other classes
            than the data or does not name its classes.

    Examples:
        >>> import torch
        >>> from lightning_merge.models import MiniViT, class_mean_head, save_heads
        >>> data = MergeDataModule(source="drawn", tasks=["drawn_hues"])
        >>> data.load(test=False)
        >>> hues = data.classes["drawn_hues"][::-1]
        >>> head = class_mean_head(torch.eye(8, 192), torch.arange(8), 8, classes=hues)
        >>> file = save_heads({"drawn_hues": head}, "heads.safetensors")
        >>> fitted = fitting_heads("heads.safetensors", data, MiniViT(depth=1))
        >>> head.classes[0], fitted["drawn_hues"].classes[0]
        ('pink', 'red')
    """
    tasks = data.tasks if tasks is None else tasks
    opened = open_heads(heads, tasks)
    fitting = {}
    for task in tasks:
        if task not in opened:
            raise InputError(
                f"heads={heads!r} has no head for {task!r}, only for {', '.join(opened)}; "
                "add it, or remove the file where heads are made from the base"
            )
        head, file = opened[task], head_file(heads, task)
        examples, _ = data.division.part(task, "train")
        width = encoder.width(encoder.preprocess.shape(examples.parts, examples.answers))
        sizes, wanted = (head.num_classes, head.dim), (len(data.classes[task]), width)
        if sizes != wanted:
            raise InputError(
                f"heads={file!r}: the head of {task!r} has (classes, width) {sizes}, the data "
                f"and the encoder {wanted}; give heads that fit"
            )
        fitting[task] = _arranged(head, file, task, data.classes[task])
    return fitting


def _arranged(head: Head, file: str, task: str, classes: Sequence[str]) -> Head:
    """Return a head with logits in the order of the data's classes."""
    spec = task_spec(task)
    known = spec.names if head.published else head.classes
    if head.published and len(known or ()) != head.num_classes:
        warn(
            f"heads={file!r} does not name its {head.num_classes} classes; the head of {task!r} is "
            f"assumed to have them in the data's order, {enumerate_names(classes, 3)}"
        )
        return head.named(classes)
    if known is None:
        raise InputError(
            f"heads={file!r}: the head of {task!r} does not name its classes, which may differ "
            "from the data's or have another order. If you know them, add them in the order of its "
            "rows: save_heads(load_heads(file), file, "
            f"classes={{{task!r}: [{classes[0]!r}, ...]}})"
        )
    rows = spec.rows(known, classes)
    if rows is None:
        raise InputError(f"heads={file!r}: the head of {task!r} {_others(spec, known, classes)}")
    return head.named(classes) if rows == [*range(len(rows))] else head.arranged(rows, classes)


def _others(spec: TaskSpec, known: Sequence[str], classes: Sequence[str]) -> str:
    """Describe how the classes of a head differ from those of the data."""
    own, wanted = (set(map(spec.identity, names)) for names in (known, classes))
    ours = [name for name in known if spec.identity(name) not in wanted]
    theirs = [name for name in classes if spec.identity(name) not in own]
    return (
        f"has other classes than the data: it has {enumerate_names([*map(repr, ours)], 3)}, the "
        f"data {enumerate_names([*map(repr, theirs)], 3)}. Give a head with the data's classes, or "
        "rename the classes of the data"
    )
