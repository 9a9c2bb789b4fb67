"""`python -m lightning_merge`: the command line."""

import sys

from lightning_merge.cli.usage import COMMANDS, USAGE

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    if sys.argv[1] not in COMMANDS and not sys.argv[1].startswith("-"):
        commands = ", ".join(COMMANDS)
        print(f"error: {sys.argv[1]!r} is no command; choose one of {commands}", file=sys.stderr)
        sys.exit(2)
    from lightning_merge.cli.main import main

    sys.exit(main(sys.argv[1:]))
