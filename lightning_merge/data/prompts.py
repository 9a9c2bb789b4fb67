"""Prompts of zero-shot heads: our wording, or that of the package clip-benchmark."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lightning_merge.core.errors import InputError
from lightning_merge.data.spec import TaskSpec
from lightning_merge.data.tasks import task_spec

Wording = Literal["auto", "own", "clip_benchmark"]
OWN = "own wording"
PACKAGE = "clip-benchmark"
_FILES = ("en_classnames.json", "en_zeroshot_classification_templates.json")


@dataclass(frozen=True)
class Prompts:
    """Words and templates for the classes of one task.

    Args:
        words: What stands for each class in a prompt.
        templates: Prompts with {} in place of the class.
        source: Whose wording it is: `OWN`, or the package with its version.

    Examples:
        >>> Prompts(("cat", "dog"), ("a photo of a {}.",), OWN).templates
        ('a photo of a {}.',)
    """

    words: tuple[str, ...]
    templates: tuple[str, ...]
    source: str


def resolved(wording: Wording, option: str = "prompts") -> Literal["own", "clip_benchmark"]:
    """Return what "auto" means here: clip-benchmark where it is installed, else our wording.

    Args:
        wording: The option's value.
        option: Its name, for messages.

    Raises:
        InputError: The package clip-benchmark is asked for and not installed.

    Examples:
        >>> resolved("own")
        'own'
    """
    installed = _folder() is not None
    if wording == "clip_benchmark" and not installed:
        raise InputError(
            f"{option}='clip_benchmark' needs the package {PACKAGE}; run: pip install -e "
            '".[clip]", or give own'
        )
    return "clip_benchmark" if installed and wording != "own" else "own"


def prompts(task: str, classes: Sequence[str], wording: Wording = "auto") -> Prompts:
    """Return the prompts of a task's classes.

    clip-benchmark has templates for most tasks of the table, and class names for some. Its names
    are found by ours, never by their place alone. What it lacks keeps our wording: whole tasks,
    and classes that the table does not know.

    Args:
        task: Name of the task.
        classes: Class names of the data.
        wording: Whose wording; "auto" is clip-benchmark's where it is installed.

    Raises:
        InputError: See `resolved`; or the package's files cannot be read, or name other classes
            than the table.

    Examples:
        >>> prompts("eurosat", ["Forest", "SeaLake"], "own").words
        ('forest', 'lake or sea')
    """
    spec = task_spec(task)
    words, templates = spec.prompts(classes)
    if resolved(wording) == "own" or not spec.clip_benchmark:
        return Prompts(words, templates, OWN)
    names, their_templates = (content.get(spec.clip_benchmark) for content in _contents())
    if not their_templates:
        return Prompts(words, templates, OWN)
    numbers = map(spec.identity, classes)
    known = _by_number(spec, names) if names else {}
    return Prompts(
        tuple(known.get(number, word) for number, word in zip(numbers, words, strict=True)),
        tuple(template.replace("{c}", "{}") for template in their_templates),
        _source(),
    )


def _by_number(spec: TaskSpec, names: Sequence[str]) -> Mapping[str | int, str]:
    """Return the names of clip-benchmark by the number of the class in the table.

    Names that the table knows say which class they are. Where two classes have the same name, the
    order has to be the table's, with our word at every place.
    """
    rows = spec.rows(names, spec.names)
    if rows is not None:
        return {number: names[row] for number, row in enumerate(rows)}
    if list(names) == [spec.word(name) for name in spec.names]:
        return dict(enumerate(names))
    raise InputError(
        f"{_source()} has other classes of {spec.name!r} than the task table; give prompts: own, "
        "or install another version"
    )


@cache
def _folder() -> Path | None:
    """Return the folder of the package's data, without importing it; None if there is none."""
    spec = find_spec("clip_benchmark")
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0]) / "datasets" if places else None


@cache
def _contents() -> tuple[Mapping[str, Any], ...]:
    """Return the class names and the templates of all tasks."""
    folder = _folder()
    assert folder is not None
    try:
        return tuple(json.loads((folder / name).read_text(encoding="utf-8")) for name in _FILES)
    except (OSError, ValueError) as fault:
        raise InputError(
            f"{_source()} in {folder} cannot be read ({fault}); install it again, or give "
            "prompts: own"
        ) from None


@cache
def _source() -> str:
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:
        return PACKAGE
