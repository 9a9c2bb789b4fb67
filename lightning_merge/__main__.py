"""`python -m lightning_merge`: the command line."""

import codecs
import locale
import os
import sys

from lightning_merge.cli.usage import COMMANDS, RUNS, USAGE


def _ensure_utf8() -> None:
    """Start anew in UTF-8 mode where the locale is another, which other libraries' files follow."""
    here = codecs.lookup(locale.getpreferredencoding(False)).name
    if here != "utf-8" and not (sys.flags.utf8_mode or sys.flags.ignore_environment):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})


if __name__ == "__main__":
    _ensure_utf8()
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    if sys.argv[1] not in COMMANDS and not sys.argv[1].startswith("-"):
        commands = ", ".join(COMMANDS)
        print(f"error: {sys.argv[1]!r} is no command; choose one of {commands}", file=sys.stderr)
        sys.exit(2)
    if sys.argv[1] in RUNS and sys.argv[2:] in (["-h"], ["--help"]):
        from lightning_merge.cli.command_help import parser_of

        parser_of(sys.argv[1], "python -m lightning_merge").print_help()
        sys.exit()
    from lightning_merge.cli.main import main

    sys.exit(main(sys.argv[1:]))
