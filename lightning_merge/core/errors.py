"""What the user is told: one exception for bad input and one warning for doubtful input."""

import warnings


class InputError(ValueError):
    """Bad input; the message names the argument, its value and the remedy.

    The command line prints only the message and exits with code 2.

    Examples:
        >>> try:
        ...     raise InputError("scale=-1 must be at least 0")
        ... except ValueError as error:
        ...     print(error)
        scale=-1 must be at least 0
    """


class InputWarning(UserWarning):
    """Input that is accepted but perhaps not as intended; the message says how it is read.

    The command line prints only the message, and each one once.

    Examples:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn("seed=1.0 is read as 1")
        >>> caught[0].category.__name__
        'InputWarning'
    """


def warn(message: str) -> None:
    """Warn about input that is accepted but perhaps not as intended.

    Args:
        message: Names the argument, its value, how it is read and what to do otherwise.

    Examples:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn("tasks=[] selects no task: list at least one")
        >>> print(caught[0].message)
        tasks=[] selects no task: list at least one
    """
    warnings.warn(message, InputWarning, stacklevel=2)


def first_line(fault: BaseException) -> str:
    r"""Return the first line of another library's message, or the kind of its exception.

    Examples:
        >>> first_line(ValueError("bad file\nand more")), first_line(KeyError())
        ('bad file', 'KeyError')
    """
    return str(fault).splitlines()[0] if str(fault) else type(fault).__name__
