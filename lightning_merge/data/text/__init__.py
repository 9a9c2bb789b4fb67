"""Texts: layouts and files, examples, rows of the task table."""
