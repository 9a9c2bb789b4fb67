"""Evaluation of a run: accuracy and cost of every candidate, tables and figures.

Tables and figures are imported from their modules, so that reading a results file loads
neither rich nor matplotlib.
"""

from lightning_merge.evaluation.aggregates import (
    Aggregate,
    CandidateAggregate,
    Difference,
    Spread,
    aggregate,
)
from lightning_merge.evaluation.bootstrap import Interval
from lightning_merge.evaluation.correctness import Correctness
from lightning_merge.evaluation.evidence import Compared
from lightning_merge.evaluation.results import CandidateResult, Results, versions

__all__ = [
    "Aggregate",
    "CandidateAggregate",
    "CandidateResult",
    "Compared",
    "Correctness",
    "Difference",
    "Interval",
    "Results",
    "Spread",
    "aggregate",
    "versions",
]
