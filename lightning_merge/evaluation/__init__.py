"""What merging cost: accuracies of every candidate, tables and figures of a run.

Tables and figures are imported from their modules, so that reading a results file loads
neither rich nor matplotlib.
"""

from lightning_merge.evaluation.results import (
    Aggregate,
    CandidateAggregate,
    CandidateResult,
    Results,
    Spread,
    aggregate,
    versions,
)

__all__ = [
    "Aggregate",
    "CandidateAggregate",
    "CandidateResult",
    "Results",
    "Spread",
    "aggregate",
    "versions",
]
