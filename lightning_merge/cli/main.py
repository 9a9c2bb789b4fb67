"""Send each command to what runs it, and turn bad input into one clear message."""

import logging
import sys
import warnings

from lightning_merge.core.errors import InputError

LIGHTNING = ("fit", "validate", "test", "predict")

NOISE = (
    "LightningCLI's args parameter is intended",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "You have overridden `on_after_batch_transfer`",
    "Precision .* is not supported by the model summary",
    "The '.*_dataloader' does not have many workers",
    r"Found .* module\(s\) in eval mode",
    "Experiment logs directory .* exists",
    "Checkpoint directory .* exists",
)
"""Warnings that come with every run and that no user can act upon."""


def main(arguments: list[str]) -> int:
    """Run one command.

    Args:
        arguments: the command and its options.

    Returns:
        The exit code: 0, or 2 for input that the user can mend.
    """
    for message in NOISE:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
    try:
        _run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: list[str]) -> None:
    if arguments[0] in LIGHTNING:
        from lightning_merge.cli.lightning import MergeCLI

        MergeCLI(arguments)
        return
    from jsonargparse import auto_cli

    from lightning_merge.cli.listing import show
    from lightning_merge.cli.merge import merge
    from lightning_merge.cli.report import report

    auto_cli({"merge": merge, "list": show, "report": report}, args=arguments, as_positional=False)
