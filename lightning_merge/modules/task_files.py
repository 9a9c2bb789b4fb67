"""Files by task: a mapping, or a pattern with {task} and the spellings of publishers."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from lightning_merge.core.errors import InputError
from lightning_merge.data.tasks import task_spec

TASK = "{task}"


def task_file(files: str | Mapping[str, str], task: str, option: str) -> str:
    """Return the file of a task.

    If a pattern's file with the task's own name does not exist, other spellings are tried: the
    row's name, its aliases and its title, in any case, and the same followed by `Val`. So
    `head_{task}.pt` finds head_SUN397.pt, and head_Cars.pt or else head_CarsVal.pt.

    Args:
        files: A pattern, or a mapping from task to file.
        task: Name of the task.
        option: What to call `files` in messages.

    Returns:
        The file; if a pattern matches none, the file with the task's own name.

    Raises:
        InputError: The mapping lacks the task, or the pattern has no {task}.

    Examples:
        >>> Path("head_SUN397.pt").touch()
        >>> task_file("head_{task}.pt", "sun397", "heads")
        'head_SUN397.pt'
    """
    if not isinstance(files, str):
        if task not in files:
            raise InputError(f"{option} has no file for task {task!r}, only for {', '.join(files)}")
        return files[task]
    if TASK not in files:
        raise InputError(f"{option}={files!r} does not contain {TASK}; add it, or give a mapping")
    plain = files.replace(TASK, task)
    return plain if os.path.lexists(plain) else _spelled(files, task) or plain


def _spelled(pattern: str, task: str) -> str | None:
    """Return the pattern's first existing file for any spelling of a task."""
    spec = task_spec(task)
    names = [task, spec.name, *spec.aliases, spec.title, re.sub(r"[\W_]", "", spec.title)]
    names = [name.casefold() for name in names if name]
    known = {name: rank for rank, name in enumerate([*names, *(f"{name}val" for name in names)])}
    folder = os.path.dirname(pattern.partition(TASK)[0])
    first, *others = map(re.escape, pattern[len(folder) :].lstrip("/").split("/")[0].split(TASK))
    try:
        entries = sorted(os.listdir(folder or "."))
    except OSError:
        return None
    part = re.compile(first + "(.+)" + r"\1".join(others))
    matches = filter(None, map(part.fullmatch, entries))
    spellings = sorted((known[m[1].casefold()], m[1]) for m in matches if m[1].casefold() in known)
    files = (pattern.replace(TASK, spelling) for _, spelling in spellings)
    return next((file for file in files if Path(file).exists()), None)
