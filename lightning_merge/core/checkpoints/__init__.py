"""Weights as files and mappings: what can be read lazily and safely, and how files are written."""
