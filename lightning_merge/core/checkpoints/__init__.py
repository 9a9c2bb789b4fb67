"""Weights as files and mappings: lazy, safe reading and atomic writing."""
