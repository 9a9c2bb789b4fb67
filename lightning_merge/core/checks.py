"""Checks of arguments: one clear error that names argument, value and what is wanted."""

import math
from collections.abc import Collection
from numbers import Real

from lightning_merge.core.errors import InputError


def require_in(interval: str, prefix: str = "", /, **arguments: float) -> None:
    """Check that every argument is a number of an interval; NaN is in none.

    Args:
        interval: As in mathematics, such as "[0, 1)" or "(0, inf)".
        prefix: What stands in front of the arguments' names in messages, such as "data.".
        arguments: Values by name.

    Raises:
        InputError: Names the argument, its value and the interval.
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
    """Check that every argument is an ordinary number.

    Raises:
        InputError: Names the argument and its value.
    """
    for name, value in arguments.items():
        if not _is_number(value) or not math.isfinite(value):
            raise InputError(f"{prefix}{name}={value!r} must be a finite number, for example 1.0")


def require_choice(choices: Collection[str], prefix: str = "", /, **arguments: str) -> None:
    """Check that every argument is one of the choices.

    Raises:
        InputError: Names the argument, its value and the choices.
    """
    for name, value in arguments.items():
        if value not in choices:
            raise InputError(f"{prefix}{name}={value!r}: choose one of {', '.join(choices)}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
