"""Callbacks that transform task vectors, merge after fit, draw figures and write predictions."""

if __name__ == "callbacks":
    raise ImportError("import lightning_merge.callbacks, not callbacks: one class, one name")

from lightning_merge.callbacks.coefficient_map import CoefficientMap
from lightning_merge.callbacks.lwptv import LwPTVMerge
from lightning_merge.callbacks.m_ties import MTiesMerge
from lightning_merge.callbacks.merge import MergeCallback
from lightning_merge.callbacks.predictions import WritePredictions
from lightning_merge.callbacks.representations import Representations
from lightning_merge.callbacks.task_vectors import (
    PruneTaskVectors,
    TransformTaskVectors,
    TrimTaskVectors,
)

__all__ = [
    "CoefficientMap",
    "LwPTVMerge",
    "MTiesMerge",
    "MergeCallback",
    "PruneTaskVectors",
    "Representations",
    "TransformTaskVectors",
    "TrimTaskVectors",
    "WritePredictions",
]
