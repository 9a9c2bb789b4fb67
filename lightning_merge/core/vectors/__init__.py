"""Experts as task vectors: what takes part in a merge, computed a tile at a time."""
