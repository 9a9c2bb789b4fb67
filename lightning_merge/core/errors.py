"""The one exception for input that a user can mend."""


class InputError(ValueError):
    """Bad input: the message names the argument, its value and the remedy.

    The command line prints the message alone and exits with code 2.
    """
