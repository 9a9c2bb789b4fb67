"""Send each command to what runs it, and turn bad input into one clear message."""

import logging
import sys
import warnings

from lightning_merge.core.errors import InputError


def main(arguments: list[str]) -> int:
    """Run one command.

    Args:
        arguments: the command and its options.

    Returns:
        The exit code: 0, or 2 for input that the user can mend.
    """
    try:
        _quiet()
        from lightning_merge.cli.lightning import MergeCLI

        MergeCLI(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _quiet() -> None:
    """Leave out what libraries say on every run and no user can act upon."""
    for message in (
        "LightningCLI's args parameter is intended",
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        "You have overridden `on_after_batch_transfer`",
        "Precision .* is not supported by the model summary",
        "The 'train_dataloader' does not have many workers",
        "The '.*_dataloader' does not have many workers",
        "Found .* module\\(s\\) in eval mode",
        "Experiment logs directory .* exists",
        "Checkpoint directory .* exists",
    ):
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
