"""Experts that can be merged but are probably not the intended ones."""

from collections.abc import Iterator
from itertools import combinations

import torch

from lightning_merge.core.checkpoints.checkpoint import Checkpoint
from lightning_merge.core.checkpoints.equality import differ
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.tiles import Span

UNRELATED = 0.25
"""Cosine between the matrices of base and expert below which they are probably unrelated.

Fine-tuned experts have cosines above 0.9, networks trained from different starts near 0.
"""
_SAMPLE = 2**12  # leading entries of every tensor


def suspicions(vectors: TaskVectors) -> Iterator[str]:
    """Report experts that equal the base or each other, or belong to an unrelated network.

    Only the first entries of every tensor are read, and more where these are equal.

    Examples:
        >>> base, expert = {"w": torch.ones(2, 2)}, {"w": torch.tensor([[1.0, 0.9], [1.1, 1.0]])}
        >>> list(suspicions(TaskVectors(base, {"mnist": expert, "cars": base})))
        ["expert 'cars' has the weights of the base: its task vector is zero"]
    """
    experts = vectors.stored.experts
    if len(vectors) and not vectors.stored.computed():
        yield from (_is_base(task) for task in vectors.tasks)
        return
    products = torch.zeros(3, len(vectors), dtype=torch.float64)
    alike = {pair: True for pair in combinations(range(len(vectors)), 2)}
    moved = torch.zeros(len(vectors), dtype=torch.bool)
    for name in vectors.names:
        span = Span(name, 0, min(_SAMPLE, vectors.numel(name)))
        base, tile = vectors.stored.read(span)
        tile.sub_(base)
        moved |= (tile != 0).any(1).cpu()
        for a, b in alike:
            alike[a, b] = alike[a, b] and torch.equal(tile[a], tile[b])
        if len(vectors.base.shape(name)) > 1:
            own, theirs = base.double(), (base + tile).double()
            pairs = (theirs @ own, theirs.square().sum(1), own.square().sum().expand(len(tile)))
            products += torch.stack(pairs).cpu()
    cosines = (products[0] / (products[1] * products[2]).sqrt()).tolist()  # NaN without matrices
    for k, (task, cosine) in enumerate(zip(vectors.tasks, cosines, strict=True)):
        if not moved[k] and _equal(vectors, vectors.base, experts[task]):
            yield _is_base(task)
        elif cosine < UNRELATED:
            yield (
                f"expert '{task}' looks like an unrelated network (the cosine between its weights "
                f"and the base's is {cosine:.2f}): check that it was fine-tuned from this base"
            )
    for (a, b), same in alike.items():
        one, other = vectors.tasks[a], vectors.tasks[b]
        if same and moved[a] and _equal(vectors, experts[one], experts[other]):
            yield f"experts '{one}' and '{other}' have the same weights: is one file given twice?"


def _is_base(task: str) -> str:
    return f"expert '{task}' has the weights of the base: its task vector is zero"


def _equal(vectors: TaskVectors, one: Checkpoint, other: Checkpoint) -> bool:
    return not any(differ(one, other, name) for name in vectors.names)
