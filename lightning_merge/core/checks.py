"""Argument checks that raise one clear error naming the argument, its value and what is allowed."""

import math
from collections.abc import Collection
from numbers import Real

from lightning_merge.core.errors import InputError


def require_in(interval: str, prefix: str = "", /, **arguments: float) -> None:
    """Check that every argument is a number within an interval; NaN never is.

    Args:
        interval: In mathematical notation, such as "[0, 1)" or "(0, inf)".
        prefix: Put before the argument names in messages, such as "data.".
        arguments: Values by name.

    Raises:
        InputError: A value is outside the interval or is not a number.

    Examples:
        >>> require_in("[0, 1)", density=0.2)
        >>> require_in("[0, 1)", density=1.0)
        Traceback (most recent call last):
        lightning_merge.core.errors.InputError: density=1.0 must be in [0, 1)
    """
    low, high = map(float, interval[1:-1].split(", "))
    above, below = interval[0] == "(", interval[-1] == ")"
    least = f"{'above' if above else 'at least'} {low:g}"
    for name, value in arguments.items():
        inside = _is_number(value) and low <= value <= high
        if not inside or (above and value == low) or (below and value == high):
            wanted = least if high == math.inf != value else f"in {interval}"
            raise InputError(f"{prefix}{name}={value!r} must be {wanted}")


def require_finite(prefix: str = "", /, **arguments: float) -> None:
    """Check that every argument is a finite number.

    Args:
        prefix: Put before the argument names in messages.
        arguments: Values by name.

    Raises:
        InputError: A value is infinite, NaN or not a number.

    Examples:
        >>> require_finite(scale=float("nan"))
        Traceback (most recent call last):
        lightning_merge.core.errors.InputError: scale=nan must be a finite number, for example 1.0
    """
    for name, value in arguments.items():
        if not _is_number(value) or not math.isfinite(value):
            raise InputError(f"{prefix}{name}={value!r} must be a finite number, for example 1.0")


def require_choice(choices: Collection[str], prefix: str = "", /, **arguments: str) -> None:
    """Check that every argument is one of the choices.

    Args:
        choices: The allowed values.
        prefix: Put before the argument names in messages.
        arguments: Values by name.

    Raises:
        InputError: A value is not among the choices; the message lists them.

    Examples:
        >>> require_choice(["mean", "sum"], reduction="max")
        Traceback (most recent call last):
        lightning_merge.core.errors.InputError: reduction='max': choose one of mean, sum
    """
    for name, value in arguments.items():
        if value not in choices:
            raise InputError(f"{prefix}{name}={value!r}: choose one of {', '.join(choices)}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
