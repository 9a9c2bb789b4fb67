"""The tiny zoo of tests/tiny_zoo.py."""

from tiny_zoo import *  # noqa: F403
