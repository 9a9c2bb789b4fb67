"""Checks before a run begins, and one-line messages for Lightning's own errors."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.errors import InputError
from lightning_merge.methods.base import Method


@contextmanager
def refusals(option: str = "trainer") -> Iterator[None]:
    """Turn Lightning's errors about trainer options into one-line messages.

    Args:
        option: Option at the start of the message.

    Raises:
        InputError: Lightning rejects an option, or lacks a package for it.

    Examples:
        >>> from lightning.pytorch import Trainer
        >>> with refusals():
        ...     _ = Trainer(accelerator="abacus", logger=False)
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: trainer: ...
    """
    try:
        yield
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as fault:
        raised_in = traceback.extract_tb(fault.__traceback__)[-1].filename
        by_lightning = Path(raised_in).is_relative_to(Path(lightning.__file__).parent)
        if not by_lightning and not isinstance(fault, MisconfigurationException):
            raise
        raise InputError(f"{option}: {' '.join(str(fault).split())}") from fault


def check_seed(seed: int | bool) -> None:
    """Check a seed; true stands for a random one.

    Raises:
        InputError: It is out of range.

    Examples:
        >>> check_seed(-1)
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: seed_everything=-1 must lie between 0 and 4294967295
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed_everything={seed} must lie between 0 and {2**32 - 1}")


def check_unseen(name: str, method: Method, unseen: Sequence[str]) -> None:
    """Check that a method does not use anything learned on unseen tasks.

    Args:
        name: Name of the method's result, for messages.
        method: Any method.
        unseen: Tasks used for measurement only.

    Raises:
        InputError: It was learned on one of them.

    Examples:
        >>> from lightning_merge.methods import Ties
        >>> check_unseen("ties", Ties(), unseen=["dtd"])  # learned on nothing
    """
    if known := sorted(set(method.origin().tasks) & set(unseen)):
        raise InputError(
            f"data.unseen={list(unseen)}: {name!r} merges by what was learned on "
            f"{enumerate_names(known)}; take a file that was not, or leave it out"
        )
