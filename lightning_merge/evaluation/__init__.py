"""Evaluation of a run: accuracy and cost of every candidate, tables and figures.

Tables and figures are imported from their modules, so that reading a results file loads
neither rich nor matplotlib.
"""

from lightning_merge.evaluation.aggregates import (
    Aggregate,
    CandidateAggregate,
    Spread,
    aggregate,
)
from lightning_merge.evaluation.results import CandidateResult, Results, versions

__all__ = [
    "Aggregate",
    "CandidateAggregate",
    "CandidateResult",
    "Results",
    "Spread",
    "aggregate",
    "versions",
]
