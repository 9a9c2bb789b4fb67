"""Dispatch each command, and turn bad input into one clear message."""

import importlib
import logging
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path

import yaml

from lightning_merge.cli.display import Silent
from lightning_merge.cli.shown import displayed, is_first
from lightning_merge.cli.usage import RUNS, program
from lightning_merge.core.allocator import keep_freed_memory
from lightning_merge.core.errors import InputError
from lightning_merge.core.progress import display

LIGHTNING = ("fit", "validate", "test", "predict")
NETWORKS = (*LIGHTNING, "tune", "mergeability")
"""Commands that run networks on many images."""

NOISE = (
    "LightningCLI's args parameter is intended",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "You have overridden `on_after_batch_transfer`",
    "Precision .* is not supported by the model summary",
    "The '.*_dataloader' does not have many workers",
    r"Found .* module\(s\) in eval mode",
    "Experiment logs directory .* exists",
    "Checkpoint directory .* exists",
    "Grad strides do not match bucket view strides",  # channels-last convolutions under DDP
    "Total length of `list` across ranks is zero",  # no validation while coefficients are fitted
    "Corrupt EXIF data",  # the EXIF data are skipped and the image is intact
    r"The number of training batches \(\d+\) is smaller than the logging interval",
)
"""Warnings that appear in every run and that users cannot act on."""


def main(arguments: list[str]) -> int:
    """Run one command.

    Args:
        arguments: The command and its options.

    Returns:
        The exit code: 0, 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # the terminal may not be able to show some names
            stream.reconfigure(errors="backslashreplace")
    for message in NOISE:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
    # It would report the GPU again for every measured network.
    logging.getLogger("lightning.pytorch.accelerators.cuda").setLevel(logging.WARNING)
    try:
        with _stoppable(), displayed(arguments) as words:
            _check_configs(words)
            _run(words)
    except (ValueError, OSError) as error:
        text = _message(error, arguments)
        if text is None:  # a bug: keep the traceback
            raise
        print(f"error: {text}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning exits with 1 when it is interrupted.
        cause = stop if isinstance(stop, KeyboardInterrupt) else stop.__context__
        if not isinstance(cause, KeyboardInterrupt):
            raise
        how, code = ("terminated", 143) if isinstance(cause, Terminated) else ("interrupted", 130)
        if is_first():
            print(f"{how}{STOPPED.get(arguments[0], '')}", file=sys.stderr)
        return code
    return 0


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a command just as Ctrl-C does."""


STOPPED = {
    "fit": "; the same command goes on: what is made stays, and learning goes on from the end of "
    "its last epoch",
    "tune": "; the same command goes on after the last trial",
    "benchmark": "; the same command goes on: cells that have ended stay",
    "merge": "; nothing was written",
}
"""Command -> what is left behind when it is stopped."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """Make SIGTERM stop a command as Ctrl-C does, leaving no half-written file behind."""

    def stop(number: int, frame: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        for number, handler in before.items():  # Lightning sets both
            signal.signal(number, handler or signal.SIG_DFL)


def _check_configs(arguments: list[str]) -> None:
    """Raise an error naming a config that is not YAML; jsonargparse does not name the file."""
    for option, value in pairwise(arguments):
        if option in ("-c", "--config") and Path(value).is_file():
            try:
                yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            except (yaml.YAMLError, UnicodeError) as error:
                raise InputError(f"{option} {value} is not YAML: {error}") from None


def _message(error: BaseException, arguments: list[str]) -> str | None:
    """Return the message for the user; None if the error is not about their input.

    jsonargparse wraps a constructor's error in a ValueError about all types tried. It accepts some
    options that are not UTF-8 and misreads others.
    """
    if isinstance(error, InputError):
        from lightning_merge.cli.parser import UsageError, explained

        if not isinstance(error, UsageError):
            return str(error)
        for word in arguments:
            if word.encode("utf-8", "ignore").decode() != word:
                return f"{word!r} is not UTF-8; rename the file or folder, or give a link to it"
        return explained(str(error))
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ImportError) or type(error).__name__ == "MisconfigurationException":
        return " ".join(str(error).split())  # a class of Lightning rejects its options
    if error.__cause__ is None or (text := _message(error.__cause__, arguments)) is None:
        return None
    wrapped = re.search(r"^Problem with given class_path '([\w.]+)'", str(error))
    return f"{wrapped[1]}: {text}" if wrapped else text


def _run(arguments: list[str]) -> None:
    if arguments[0] in NETWORKS:
        keep_freed_memory()
    if arguments[0] in LIGHTNING:
        from lightning_merge.cli.lightning import MergeCLI

        _divert()
        MergeCLI(arguments)
        return
    if arguments[0] == "tune":
        from lightning_merge.cli.tune import tune

        _divert()
        tune(arguments[1:])
        return
    if arguments[0] == "convert":
        from lightning_merge.cli.convert import run

        run(arguments[1:])
        return
    from jsonargparse import auto_cli

    from lightning_merge.cli.parser import Parser
    from lightning_merge.cli.words import plain_words

    command, words = _command(arguments), plain_words(arguments)
    _divert()
    auto_cli(
        {arguments[0]: command},
        args=words,
        as_positional=False,
        parser_class=Parser,
        prog=program(),
    )


def _divert() -> None:
    """Let the display take Lightning's lines, now that it has been imported if it is needed."""
    if isinstance(shown := display(), Silent):
        shown.log.take_over(shown=shown.verbose)


def _command(arguments: list[str]) -> Callable[..., None]:
    """Import only what a command runs: merging weights does not need Lightning."""
    if arguments[0] != "merge":
        module, name = RUNS[arguments[0]]
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
    images = ("--encoder", "--data", "--heads", "--device")
    every = (*images, "--config", "--print_config", "--help", "-h")
    if any(argument.startswith(every) for argument in arguments):
        from lightning_merge.cli.merge_images import merge as merge_images

        return merge_images
    from lightning_merge.cli.merge import merge

    return merge
