"""Merging methods: mappings of tensors in, a dict of tensors out, no Lightning.

`Ties(density=0.2)(base, experts)` merges; `transforms=[LwPTV()]` goes in front of any method.
"""

from lightning_merge.methods.average import Average
from lightning_merge.methods.base import MergeMethod, Resources, Transform, registered
from lightning_merge.methods.dare import Dare
from lightning_merge.methods.learned import LearnedCoefficients
from lightning_merge.methods.lwptv import LwPTV
from lightning_merge.methods.m_ties import MTies, MTiesAnalysis
from lightning_merge.methods.task_arithmetic import TaskArithmetic
from lightning_merge.methods.ties import Ties, TrimAndElect

__all__ = [
    "Average",
    "Dare",
    "LearnedCoefficients",
    "LwPTV",
    "MTies",
    "MTiesAnalysis",
    "MergeMethod",
    "Resources",
    "TaskArithmetic",
    "Ties",
    "Transform",
    "TrimAndElect",
    "registered",
]
