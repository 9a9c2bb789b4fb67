"""The tune command: parse its options, search, and show the table."""

import inspect
import shlex
from pathlib import Path

from lightning_merge.cli.lightning import MergeCLI
from lightning_merge.cli.parser import Parser, plain
from lightning_merge.cli.show import show
from lightning_merge.cli.usage import program
from lightning_merge.core.checkpoints.files import write_text
from lightning_merge.runs.tune import Tune


def tune(arguments: list[str]) -> None:
    """Run the tune command.

    Args:
        arguments: The words after `tune`.
    """
    about = inspect.cleandoc(Tune.__doc__ or "").partition("\n\nArgs:")[0]
    parser = Parser(prog=f"{program()} tune", description=about)
    parser.add_argument("--config", action="config", help="YAML file of options")
    parser.add_class_arguments(Tune, as_group=False)
    config = parser.parse_args(arguments)
    given = plain(config)
    given["data"] = given["data"].get("init_args", given["data"])
    options = parser.instantiate_classes(config)
    options.pop("config", None)

    def save(file: Path) -> None:
        write_text(file, parser.dump(config, skip_none=False))

    run = Tune(**dict(options.items()))
    command = shlex.join(["python", "-m", "lightning_merge", "tune", *arguments])
    results = run.run(given, save, command, MergeCLI)
    notes = [c.note for c in results.candidates.values() if not c.bound]
    show(results, run.folder, run.file, notes)
