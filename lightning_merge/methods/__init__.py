"""Merging methods: mappings of tensors in, a dict of tensors out, no Lightning.

`Ties(density=0.2)(base, experts)` merges; `transforms=[LwPTV()]` goes in front of any method.
Where one set of weights is not enough, a `NetworkMethod` returns a module.
"""

from lightning_merge.methods.average import Average
from lightning_merge.methods.base import MergeMethod, Method, Resources, Transform, registered
from lightning_merge.methods.consensus import Consensus
from lightning_merge.methods.dare import Dare
from lightning_merge.methods.emr import EMR
from lightning_merge.methods.ensemble import Ensemble
from lightning_merge.methods.fisher import Fisher
from lightning_merge.methods.iso import IsoC, IsoCTS
from lightning_merge.methods.knots import KnOTS
from lightning_merge.methods.learned import LearnedCoefficients
from lightning_merge.methods.lines import LiNeS
from lightning_merge.methods.lwptv import LwPTV
from lightning_merge.methods.m_dare import MDare
from lightning_merge.methods.m_ties import MTies, MTiesAnalysis
from lightning_merge.methods.model_stock import ModelStock
from lightning_merge.methods.network import NetworkMethod, TaskNetwork
from lightning_merge.methods.pcb import PCB
from lightning_merge.methods.pruning import (
    AbsolutePruning,
    MagnitudePruning,
    RandomLayers,
    RandomPruning,
)
from lightning_merge.methods.recentre import Recentre
from lightning_merge.methods.regmean import RegMean
from lightning_merge.methods.regmean_pp import RegMeanPlusPlus
from lightning_merge.methods.surgery import Surgery
from lightning_merge.methods.task_arithmetic import TaskArithmetic
from lightning_merge.methods.ties import Ties, TrimAndElect
from lightning_merge.methods.tsvm import TSVM
from lightning_merge.methods.wemoe import WEMoE
from lightning_merge.methods.wise_ft import WiSEFT

__all__ = [
    "EMR",
    "PCB",
    "TSVM",
    "AbsolutePruning",
    "Average",
    "Consensus",
    "Dare",
    "Ensemble",
    "Fisher",
    "IsoC",
    "IsoCTS",
    "KnOTS",
    "LearnedCoefficients",
    "LiNeS",
    "LwPTV",
    "MDare",
    "MTies",
    "MTiesAnalysis",
    "MagnitudePruning",
    "MergeMethod",
    "Method",
    "ModelStock",
    "NetworkMethod",
    "RandomLayers",
    "RandomPruning",
    "Recentre",
    "RegMean",
    "RegMeanPlusPlus",
    "Resources",
    "Surgery",
    "TaskArithmetic",
    "TaskNetwork",
    "Ties",
    "Transform",
    "TrimAndElect",
    "WEMoE",
    "WiSEFT",
    "registered",
]
