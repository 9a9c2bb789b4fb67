"""Choose what shows the work of a command: --quiet, --verbose, a terminal or none."""

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from lightning_merge.cli.bars import Bars
from lightning_merge.cli.display import LastLines, Lines, Silent
from lightning_merge.cli.run_log import RunLog
from lightning_merge.core.errors import InputError, InputWarning
from lightning_merge.core.progress import details, shown_by

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Environment variables in which launchers give a process its rank."""
SWITCHES = ("--quiet", "--verbose")
WORK = ("fit", "validate", "test", "predict", "tune", "mergeability", "merge")
"""Commands that take the switches."""


def is_first() -> bool:
    """Whether this is the first process of the run, the only one that prints."""
    return all(os.environ.get(rank, "0") == "0" for rank in RANKS)


@contextmanager
def displayed(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Show the work within the block; yield the arguments without --quiet and --verbose.

    Raises:
        InputError: Both are given.
    """
    words, switch = taken(arguments)
    log = RunLog(next((name for rank in RANKS if (name := os.environ.get(rank, "0")) != "0"), "0"))
    shown = _display(switch, log)
    handlers: list[logging.Handler] = [log]
    if shown.verbose:
        handlers.append(logging.StreamHandler(sys.stderr))
    level, told = details.level, warnings.showwarning
    details.setLevel(logging.INFO)
    for handler in handlers:
        details.addHandler(handler)
    log.add(f"$ {shlex.join(['python', '-m', 'lightning_merge', *words])}")
    _show_warnings(shown)
    try:
        with shown_by(shown):
            yield words
    except BaseException as fault:
        log.add(repr(fault))
        raise
    finally:
        shown.close()
        log.give_back()
        warnings.showwarning = told
        for handler in handlers:
            details.removeHandler(handler)
        details.setLevel(level)


def taken(arguments: Sequence[str]) -> tuple[list[str], str]:
    """Return the arguments without the switches, and the switch that is on.

    `--verbose` with a value is Lightning's own option of `validate` and `test`.

    Raises:
        InputError: Both are on.
    """
    command, words, on = arguments[0], [*arguments], set()
    for switch in SWITCHES if command in WORK else ():
        while switch in words:
            place = words.index(switch)
            value = "".join(words[place + 1 : place + 2])
            if value in ("true", "false"):
                if switch == "--verbose" and command in ("validate", "test"):
                    break
                del words[place + 1]
            del words[place]
            on |= {switch} if value != "false" else set()
    if len(on) > 1:
        raise InputError("--quiet and --verbose exclude each other; give one of them")
    return words, "".join(on)


def _display(switch: str, log: RunLog) -> Silent:
    if not is_first():
        return Silent(log)
    if switch == "--quiet":
        return LastLines(log)
    if switch == "--verbose":
        return Bars(log)
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return Lines(log)
    from lightning_merge.cli.checklist import Checklist  # rich takes a while

    return Checklist(log)


def _show_warnings(shown: Silent) -> None:
    """Show the message of each warning once, and log where it comes from.

    With --verbose, warnings that are not about input are left to Python.
    """
    others, told = warnings.showwarning, set[str]()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        about_input = issubclass(category, InputWarning)
        if shown.verbose and not about_input:
            others(message, category, filename, lineno, file, line)
        elif str(message) not in told:
            told.add(str(message))
            shown.warn(" ".join(str(message).split()) if not about_input else str(message))
        shown.log.add(warnings.formatwarning(message, category, filename, lineno, line).rstrip())

    warnings.filterwarnings("always", category=InputWarning)
    warnings.showwarning = show
