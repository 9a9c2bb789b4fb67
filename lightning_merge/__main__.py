"""`lightning-merge` and `python -m lightning_merge`: the command line."""

import codecs
import locale
import os
import sys

from lightning_merge.cli.usage import COMMANDS, RUNS, program, usage


def _ensure_utf8() -> None:
    """Start anew in UTF-8 mode where the locale is another, which other libraries' files follow."""
    here = codecs.lookup(locale.getpreferredencoding(False)).name
    if here != "utf-8" and not (sys.flags.utf8_mode or sys.flags.ignore_environment):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})


def run() -> int:
    """Run the command that the program's arguments name.

    Returns:
        The exit code; see `main`. 141 where whoever read the output stopped, such as `| head`.
    """
    _ensure_utf8()
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
        return 141
    return code


def _run() -> int:
    command, words = "".join(sys.argv[1:2]), sys.argv[2:]
    if command in ("", "-h", "--help"):
        print(usage(program()))
        return 0 if command else 2
    if command not in COMMANDS and not command.startswith("-"):
        commands = ", ".join(COMMANDS)
        print(f"error: unknown command {command!r}; choose one of {commands}", file=sys.stderr)
        return 2
    if command in RUNS and words in (["-h"], ["--help"]):
        from lightning_merge.cli.command_help import parser_of

        parser_of(command, program()).print_help()
        return 0
    from lightning_merge.cli.main import main

    return main([command, *words])


if __name__ == "__main__":
    sys.exit(run())
