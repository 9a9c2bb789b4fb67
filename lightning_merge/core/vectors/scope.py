"""Scope of a merge: which tensors are merged, which are copied and which are tied."""

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator
from typing import Literal, NamedTuple

import torch

from lightning_merge.core.checkpoints.equality import differ, runs, same_bits
from lightning_merge.core.checkpoints.lazy import Checkpoint
from lightning_merge.core.checkpoints.names import is_statistic
from lightning_merge.core.dtypes import wide_dtype

Kind = Literal["all", "changed"]
_MANY = 2**12  # leading entries that decide whether a tensor is constant
_START = 4  # leading entries that tell tensors of one shape apart


class Scope(NamedTuple):
    """The floating-point tensors of a base, divided by how the experts changed them.

    Attributes:
        names: Tensors that count in sums, ranks and quantiles, in the base's order: neither
            BatchNorm statistics nor masks of infinity.
        kept: Tensors that every expert has bit for bit as in the base, including statistics.
        ties: Name of every other tied tensor to the name of the first. Tensors are tied if an
            expert has changed them and they are equal in the base and in every expert.

    Examples:
        >>> scope = Scope(names=("embedding",), kept=frozenset(), ties={"head": "embedding"})
        >>> scope.ties["head"]
        'embedding'
    """

    names: tuple[str, ...]
    kept: frozenset[str]
    ties: dict[str, str]


def is_merged(name: str, dtype: torch.dtype) -> bool:
    """Return whether a tensor may have a task vector: floating-point, not a BatchNorm statistic.

    Examples:
        >>> is_merged("bn.weight", torch.float16), is_merged("bn.running_mean", torch.float32)
        (True, False)
    """
    return dtype.is_floating_point and not is_statistic(name)


def find_scope(base: Checkpoint, experts: Collection[Checkpoint], kind: Kind = "all") -> Scope:
    """Compare the experts with the base, reading only the beginning of tensors that differ.

    Args:
        base: Pretrained weights.
        experts: Weights of the same names and shapes.
        kind: "all" tensors count, as in published code, or only those that an expert has
            "changed", and of tied ones only the first.

    Examples:
        >>> from lightning_merge.core.checkpoints.checkpoint import as_checkpoint
        >>> base = {"stem": torch.zeros(2), "head": torch.zeros(2)}
        >>> expert = as_checkpoint({**base, "head": torch.ones(2)})
        >>> find_scope(as_checkpoint(base), [expert], "changed")
        Scope(names=('head',), kept=frozenset({'stem'}), ties={})
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
    """Return a view of an expert in which missing tensors that the base ties come from their twin.

    Tensors are tied in the base if they share memory or storage, or if they are equal and not
    constant. Writers that know the network store such a tensor once, others twice.

    Examples:
        >>> from lightning_merge.core.checkpoints.checkpoint import as_checkpoint
        >>> shared = torch.arange(3.0)
        >>> base = as_checkpoint({"embedding": shared, "head": shared})
        >>> complete(base, as_checkpoint({"embedding": torch.ones(3)}))["head"]
        tensor([1., 1., 1.])
    """
    missing = [name for name in base if name not in expert]
    tied = twins(base, missing, [name for name in base if name in expert])
    if not tied:
        return expert
    order = [name for name in base if name in expert or name in tied]
    names = {name: tied.get(name, name) for name in [*order, *(n for n in expert if n not in base)]}
    return expert.renamed(names)


def twins(base: Checkpoint, names: Iterable[str], among: Iterable[str]) -> dict[str, str]:
    """Find, for some names of a base, another name among others that holds the same tensor.

    Returns:
        Name to the other name, for names that have a twin; `complete` says what counts as the
        same tensor.

    Examples:
        >>> from lightning_merge.core.checkpoints.checkpoint import as_checkpoint
        >>> shared = torch.arange(3.0)
        >>> base = as_checkpoint({"embedding": shared, "head": shared, "bias": torch.zeros(3)})
        >>> twins(base, ["head", "bias"], among=["embedding"])
        {'head': 'embedding'}
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
    """Map names of tensors that equal an earlier one in every checkpoint to that one."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for alike in _alike(checkpoints, names):
        for name in alike:
            start = tuple(_start(checkpoint, name) for checkpoint in checkpoints)
            groups[alike[0], start].append(name)
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
    """Return the first entries of a tensor, which tell most tensors apart."""
    values = torch.empty(min(_START, checkpoint.numel(name)), dtype=checkpoint.dtype(name))
    checkpoint.read_into(name, 0, values)
    return values.view(torch.uint8).numpy().tobytes()


def _is_constant(checkpoint: Checkpoint, name: str) -> bool:
    """Return whether a tensor begins with copies of one number, like an untrained norm."""
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
