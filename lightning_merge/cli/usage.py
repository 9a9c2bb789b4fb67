"""The text of `--help`; imports next to nothing, so that it prints at once."""

import sys
from pathlib import PurePath

COMMANDS = {
    "fit": "train an expert or a base, or learn merging coefficients, merge and compare",
    "validate": "measure on the held-out examples",
    "test": "measure on the test examples",
    "predict": "write the predicted classes of the test examples",
    "merge": "merge checkpoints by any closed-form method",
    "tune": "choose a method's hyperparameters on held-out examples, and test them once",
    "mergeability": "M-Loss of experts and of their pairs: how well they will merge",
    "convert": "merged weights as open_clip, timm, transformers or torch load them",
    "benchmark": "a grid of suites, methods and seeds, in one table",
    "report": "a page or a table of a run, or of several seeds, with intervals",
    "list": "show methods, tasks and encoders",
}

RUNS = {
    "merge": ("lightning_merge.cli.merge_images", "merge"),
    "tune": ("lightning_merge.cli.tune", "Tune"),
    "mergeability": ("lightning_merge.cli.mergeability", "mergeability"),
    "convert": ("lightning_merge.cli.convert", "convert"),
    "benchmark": ("lightning_merge.cli.benchmark", "benchmark"),
    "report": ("lightning_merge.cli.report", "report"),
    "list": ("lightning_merge.cli.listing", "show"),
}
"""Command -> module and name of the function or class whose parameters are its options.

LightningCLI runs the other commands.
"""

SCRIPT = "lightning-merge"
"""The command installed with the package."""


def program() -> str:
    """Return how the user called the program."""
    return SCRIPT if PurePath(sys.argv[0]).stem == SCRIPT else "python -m lightning_merge"


def usage(program: str) -> str:
    """Return the help of the program.

    Args:
        program: How the user called it.
    """
    commands = "\n".join(f"  {name:<12} {what}" for name, what in COMMANDS.items())
    return f"""usage: {program} COMMAND [--config FILE] [options]

Merge fine-tuned experts of one pretrained network into a single network.

commands:
{commands}

Every command answers to --help; fit, validate, test and predict take Lightning's grammar
(--config FILE, --print_config, --trainer.max_epochs 5, --model.init_args.learning_rate 1e-3).
Commands that run networks or merge take --quiet (warnings, errors and the last lines alone) and
--verbose (every line as it comes); run.log in the run folder has every line in any case.

examples:
  {program} fit --config configs/quickstart.yaml
  {program} merge --base base.safetensors --experts.mnist mnist.safetensors \\
      --experts.cars cars.safetensors --method Ties --method.density 0.2 --output merged.safetensors
"""
