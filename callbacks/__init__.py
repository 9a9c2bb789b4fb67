"""Callbacks: merging after training, a map of the coefficients, predictions as a file."""

if __name__ == "callbacks":
    raise ImportError("import lightning_merge.callbacks, not callbacks: one class, one name")

from lightning_merge.callbacks.coefficient_map import CoefficientMap
from lightning_merge.callbacks.lwptv import LwPTVMerge
from lightning_merge.callbacks.m_ties import MTiesMerge
from lightning_merge.callbacks.merge import MergeCallback
from lightning_merge.callbacks.predictions import WritePredictions

__all__ = ["CoefficientMap", "LwPTVMerge", "MTiesMerge", "MergeCallback", "WritePredictions"]
