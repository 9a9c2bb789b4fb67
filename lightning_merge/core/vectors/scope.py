"""Which tensors take part in a merge, which ones are copied, and which are one and the same."""

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator
from typing import Literal, NamedTuple

import torch

from lightning_merge.core.checkpoints.equality import differ, runs, same_bits
from lightning_merge.core.checkpoints.lazy import Checkpoint
from lightning_merge.core.checkpoints.names import is_statistic
from lightning_merge.core.dtypes import wide_dtype

Kind = Literal["all", "changed"]
_MANY = 2**12  # entries by which a constant is recognised
_START = 4  # entries by which tensors of one shape are told apart


class Scope(NamedTuple):
    """The floating-point tensors of a base, by what the experts have made of them.

    Attributes:
        names: Those that count in sums, ranks and quantiles, in the base's order: no BatchNorm
            statistics, and no masks of infinity.
        kept: Those that every expert has as the base has them, bit for bit; statistics among them.
        ties: Names of the other tied tensors to the first one's. Tied are tensors that an expert
            has changed and that are equal in the base and in every expert.
    """

    names: tuple[str, ...]
    kept: frozenset[str]
    ties: dict[str, str]


def is_merged(name: str, dtype: torch.dtype) -> bool:
    """Whether a tensor may have a task vector: a floating-point one, no BatchNorm statistic."""
    return dtype.is_floating_point and not is_statistic(name)


def find_scope(base: Checkpoint, experts: Collection[Checkpoint], kind: Kind = "all") -> Scope:
    """Compare the experts with the base; of a tensor that differs little is read.

    Args:
        base: Pretrained weights.
        experts: Weights of the same names and shapes.
        kind: "all" tensors count, as in published code, or those that an expert has "changed", of
            tied ones the first.
    """
    floating = [name for name in base if base.dtype(name).is_floating_point]
    kept = {name for name in floating if not any(differ(base, e, name) for e in experts)}
    merged = [name for name in floating if is_merged(name, base.dtype(name))]
    ties = _ties((base, *experts), [name for name in merged if name not in kept])
    if kind == "all":
        names = [name for name in merged if name not in kept or _is_finite(base, name)]
    else:
        names = [name for name in merged if name not in kept and name not in ties]
    return Scope(tuple(names), frozenset(kept), ties)


def complete(base: Checkpoint, expert: Checkpoint) -> Checkpoint:
    """Return a view of an expert where tensors that it lacks and the base ties have their twin.

    Tied are tensors that share memory or storage in the base, or are equal there and not constant:
    such a one is left out by writers that know the network, and stored twice by others.
    """
    missing = [name for name in base if name not in expert]
    tied = twins(base, missing, [name for name in base if name in expert])
    if not tied:
        return expert
    order = [name for name in base if name in expert or name in tied]
    names = {name: tied.get(name, name) for name in [*order, *(n for n in expert if n not in base)]}
    return expert.renamed(names)


def twins(base: Checkpoint, names: Iterable[str], among: Iterable[str]) -> dict[str, str]:
    """For some names of a base another one, among others, that holds the same tensor.

    Returns:
        Name to the other name, for those that have one; see `complete` for what is the same.
    """
    candidates = defaultdict(list)
    for name in among:
        candidates[_layout(base, name)].append(name)
    pairs = {}
    for name in names:
        others = candidates[_layout(base, name)] if base.dtype(name).is_floating_point else []
        for other in others:
            if _stored_together(base, name, other) or (
                not _is_constant(base, name) and same_bits(base, name, base, other)
            ):
                pairs[name] = other
                break
    return pairs


def _ties(checkpoints: Collection[Checkpoint], names: Iterable[str]) -> dict[str, str]:
    """Names of tensors that are equal to another one in every checkpoint, to the first of them."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for alike in _alike(checkpoints, names):
        for name in alike:
            start = tuple(_start(checkpoint, name) for checkpoint in checkpoints)
            groups[start].append(name)
    ties: dict[str, str] = {}
    for group in groups.values():
        firsts: list[str] = []
        for name in group:
            tied = (first for first in firsts if _are_tied(checkpoints, first, name))
            if (first := next(tied, None)) is None:
                firsts.append(name)
            else:
                ties[name] = first
    return ties


def _alike(checkpoints: Collection[Checkpoint], names: Iterable[str]) -> Iterator[list[str]]:
    """Return groups of two or more names whose tensors have one shape and type everywhere."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for name in names:
        groups[tuple(_layout(checkpoint, name) for checkpoint in checkpoints)].append(name)
    return (group for group in groups.values() if len(group) > 1)


def _are_tied(checkpoints: Iterable[Checkpoint], name: str, other: str) -> bool:
    return all(
        _stored_together(checkpoint, name, other) or same_bits(checkpoint, name, checkpoint, other)
        for checkpoint in checkpoints
    )


def _layout(checkpoint: Checkpoint, name: str) -> Hashable:
    return checkpoint.shape(name), checkpoint.dtype(name)


def _stored_together(checkpoint: Checkpoint, name: str, other: str) -> bool:
    identity = checkpoint.identity(name)
    return identity is not None and identity == checkpoint.identity(other)


def _start(checkpoint: Checkpoint, name: str) -> bytes:
    """Return the first entries of a tensor, by which most are told apart."""
    values = torch.empty(min(_START, checkpoint.numel(name)), dtype=checkpoint.dtype(name))
    checkpoint.read_into(name, 0, values)
    return values.view(torch.uint8).numpy().tobytes()


def _is_constant(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor begins with many times the same number, as norms do before training."""
    values = torch.empty(min(_MANY, checkpoint.numel(name)), dtype=torch.float64)
    checkpoint.read_into(name, 0, values)
    return bool((values == values[:1]).all())


def _is_finite(checkpoint: Checkpoint, name: str) -> bool:
    dtype = wide_dtype(checkpoint.dtype(name))
    for start, stop in runs(checkpoint.numel(name)):
        values = torch.empty(stop - start, dtype=dtype)
        checkpoint.read_into(name, start, values)
        if not bool(values.isfinite().all()):
            return False
    return True
