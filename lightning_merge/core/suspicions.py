"""Experts that can be merged, but hardly were meant."""

from collections.abc import Iterator
from itertools import combinations

import torch

from lightning_merge.core.checkpoint import Checkpoint
from lightning_merge.core.scope import differ
from lightning_merge.core.task_vectors import Span, TaskVectors

UNRELATED = 0.8
"""How long task vectors are, in relation to the base's weights, if networks are unrelated.

Two networks trained from different starts are about sqrt(2) apart, fine-tuned ones rarely 0.3.
"""
_SAMPLE = 2**12  # entries of every tensor


def suspicions(vectors: TaskVectors) -> Iterator[str]:
    """Say which experts are the base, the same as another, or of an unrelated network.

    It looks at the first entries of every tensor, and more only where these are the same.
    """
    if len(vectors) and not vectors.computed():
        yield from (_is_base(task) for task in vectors.tasks)
        return
    squares, of_base = torch.zeros(len(vectors), dtype=torch.float64), 0.0
    alike = {pair: True for pair in combinations(range(len(vectors)), 2)}
    moved = torch.zeros(len(vectors), dtype=torch.bool)
    for name in vectors.names:
        span = Span(name, 0, min(_SAMPLE, vectors.numel(name)))
        base, tile = vectors.sample(span)
        moved |= (tile != 0).any(1)
        for a, b in alike:
            alike[a, b] = alike[a, b] and torch.equal(tile[a], tile[b])
        if len(vectors.base.shape(name)) > 1:
            squares += tile.double().square().sum(1)
            of_base += float(base.double().square().sum())
    ratios = (squares / max(of_base, 1e-300)).sqrt().tolist()
    for k, (task, ratio) in enumerate(zip(vectors.tasks, ratios, strict=True)):
        if not moved[k] and _equal(vectors, vectors.base, vectors.experts[task]):
            yield _is_base(task)
        elif of_base and ratio > UNRELATED:
            yield (
                f"expert '{task}' differs from the base as an unrelated network does: its task "
                f"vector is {ratio:.2g} times as long as the base's weights. Check that it was "
                "fine-tuned from this base"
            )
    for (a, b), same in alike.items():
        one, other = vectors.tasks[a], vectors.tasks[b]
        if same and moved[a] and _equal(vectors, vectors.experts[one], vectors.experts[other]):
            yield f"experts '{one}' and '{other}' have the same weights: is one file given twice?"


def _is_base(task: str) -> str:
    return f"expert '{task}' has the weights of the base: its task vector is zero"


def _equal(vectors: TaskVectors, one: Checkpoint, other: Checkpoint) -> bool:
    return not any(differ(one, other, name) for name in vectors.names)
