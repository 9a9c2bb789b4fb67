"""LightningModules over one common base."""

from lightning_merge.modules.adamerging import AdaMerging
from lightning_merge.modules.base import TaskModule
from lightning_merge.modules.coefficients import CoefficientModule
from lightning_merge.modules.distill import Distill, Teacher
from lightning_merge.modules.evaluate import Evaluate
from lightning_merge.modules.finetune import FineTune
from lightning_merge.modules.stats_merging import StatsMerging

__all__ = [
    "AdaMerging",
    "CoefficientModule",
    "Distill",
    "Evaluate",
    "FineTune",
    "StatsMerging",
    "TaskModule",
    "Teacher",
]
