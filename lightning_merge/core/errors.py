"""What a user is told: the one exception for input to mend, and the one warning to know of."""

import warnings


class InputError(ValueError):
    """Bad input: the message names the argument, its value and the remedy.

    The command line prints the message alone and exits with code 2.
    """


class InputWarning(UserWarning):
    """Input that is taken, but perhaps not as it was meant; the message says how it is taken.

    The command line prints the message alone, each one once.
    """


def warn(message: str) -> None:
    """Tell of input that is taken, but perhaps not as it was meant.

    Args:
        message: Names the argument, its value, how it is taken and what to do otherwise.
    """
    warnings.warn(message, InputWarning, stacklevel=2)
