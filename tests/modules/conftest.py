"""The tiny zoo of tests/tiny_zoo.py, and processes that share a run of it."""

from processes import *  # noqa: F403
from tiny_zoo import *  # noqa: F403
