"""Protect command-line words from YAML: paths, and patterns that begin with `*`."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_merge.core.errors import InputError

_ITEM = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^,]*?))\s*(?:,|$)""")
_NAMES = re.compile(r"\[?\s*[\w.]+(\s*,\s*[\w.]+)*\s*\]?")


class _Given(NamedTuple):
    """An option, given as two words or as one with `=`; or any other word.

    Attributes:
        name: Name of the option without dashes; empty for other words.
        value: Value of the option; None if it has none.
        words: The words as given.
    """

    name: str
    value: str | None
    words: list[str]


def plain_words(arguments: Sequence[str]) -> list[str]:
    """Return the words with expert files and patterns as JSON, which YAML reads as intended.

    * `--experts.NAME FILE`: the file name is taken literally, and overrides that of a config.
    * `--ignore PATTERN`, `--ignore '[PATTERN, PATTERN]'`: quotes around a pattern are optional.
      `--ignore+` adds to the patterns so far.
    * `--method.transforms NAME`, or several in brackets: transforms by name only.
    * `--max-shard-size`, `--dry-run`: dashes inside option names become underscores.

    Args:
        arguments: The command and its options.

    Raises:
        InputError: An expert's name is given twice, or an option has no value.
    """
    others: list[str] = []
    experts: dict[str, str] = {}
    patterns: list[str] = []
    adds = True  # to the patterns in a config
    lists: set[str] = set()
    for given in _read(arguments):
        if given.name.startswith("experts."):
            task = given.name.removeprefix("experts.")
            if task in experts:
                raise InputError(f"--{given.name} is given twice: give every expert its own name")
            experts[task] = _value(given)
        elif given.name in ("ignore", "ignore+"):
            adds = adds and given.name == "ignore+"
            patterns = [*(patterns if given.name == "ignore+" else ()), *_patterns(_value(given))]
        elif given.name.endswith("transforms") and given.name in lists:
            raise InputError(
                f"--{given.name} is given twice: give a list, as in '[LwPTV, Dare]', or add the "
                f"second one by --{given.name}+"
            )
        elif given.name.endswith("transforms") and _are_names(given.value):
            lists.add(given.name)
            kinds = [{"class_path": kind} for kind in re.findall(r"[\w.]+", _value(given))]
            others += [f"--{given.name}", json.dumps(kinds)]
        else:
            first, *rest = given.words
            others += [re.sub(r"^--[\w-]+", lambda o: "--" + o[0][2:].replace("-", "_"), first)]
            others += rest
    if experts:
        others += ["--experts", json.dumps({**_of_configs(others), **experts})]
    if patterns or not adds:
        others += ["--ignore+" if adds else "--ignore", json.dumps(patterns)]
    return others


def _read(arguments: Sequence[str]) -> Iterator[_Given]:
    """Yield options with their values, and other words, in order."""
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            yield _Given("", None, [word])
        elif "=" in word:
            name, _, value = word[2:].partition("=")
            yield _Given(name, value, [word])
        elif words and not words[0].startswith("--"):
            yield _Given(word[2:], words[0], [word, words.pop(0)])
        else:
            yield _Given(word[2:], None, [word])


def _value(given: _Given) -> str:
    if given.value is None:
        raise InputError(f"--{given.name} has no value: give one")
    return given.value


def _patterns(value: str) -> list[str]:
    """Return the patterns of a list in brackets, or the value as a single pattern."""
    text = value.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return [value]
    items = [next(filter(None, groups), "") for groups in _ITEM.findall(text[1:-1])]
    return [item for item in items if item]


def _are_names(value: str | None) -> bool:
    """Whether a value is one name, or several in brackets, rather than a file of options."""
    return value is not None and bool(_NAMES.fullmatch(value)) and not Path(value).is_file()


def _of_configs(words: Sequence[str]) -> dict[str, Any]:
    """Return the experts named in configs; later configs win."""
    found: dict[str, Any] = {}
    for option, value in pairwise(words):
        if option in ("-c", "--config") and Path(value).is_file():
            content = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            experts = content.get("experts") if isinstance(content, dict) else None
            found |= experts if isinstance(experts, dict) else {}
    return found
