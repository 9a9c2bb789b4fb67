"""Bounds of hyperparameters: one clear error that names argument, value and remedy."""

import math
from collections.abc import Sequence

from lightning_merge.core.errors import InputError


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def require_between(low: float, high: float, **arguments: float) -> None:
    """Every argument lies in [low, high]; NaN does not.

    Raises:
        InputError: Names the argument and its value.
    """
    for name, value in arguments.items():
        if not _is_number(value) or not low <= value <= high:
            raise InputError(
                f"{name}={value!r} is outside [{low:g}, {high:g}]: choose a number in it"
            )


def require_finite(**arguments: float) -> None:
    """Every argument is an ordinary number.

    Raises:
        InputError: Names the argument and its value.
    """
    for name, value in arguments.items():
        if not _is_number(value) or not math.isfinite(value):
            raise InputError(f"{name}={value!r} is not a finite number: give one, for example 1.0")


def require_choice(choices: Sequence[str], **arguments: str) -> None:
    """Every argument is one of the choices.

    Raises:
        InputError: Names the argument, its value and the choices.
    """
    for name, value in arguments.items():
        if value not in choices:
            raise InputError(f"{name}={value!r} is unknown: choose one of {', '.join(choices)}")
