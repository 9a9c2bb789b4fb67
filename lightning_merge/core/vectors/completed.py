"""Weights of a network or of a part of it, completed from the network that they come from."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from lightning_merge.core.checkpoints.checkpoint import Checkpoint
from lightning_merge.core.checkpoints.names import align_names, common_prefix, enumerate_names
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.scope import twins
from lightning_merge.core.vectors.towers import align


class Completed(NamedTuple):
    """Weights under the names of a base.

    Attributes:
        weights: One tensor for each of the base's names.
        kept: Names of the tensors that are the base's.

    Examples:
        >>> Completed(Checkpoint({}), kept=[]).kept
        []
    """

    weights: Checkpoint
    kept: list[str]


def completed(base: Checkpoint, source: Checkpoint) -> Completed:
    """Bring weights under the names of their base, and take from it the parts that they lack.

    A part is what lies below one name at the first level, such as `visual`, `text_model` or
    `classifier`; it is taken from the base as a whole or not at all. Counters and indices of the
    base stay. Tensors that the base ties to one of the source are the source's.

    Args:
        base: Weights of the whole network.
        source: Weights of the same network or of a part of it, under the names of any library and
            with any prefix.

    Raises:
        InputError: The source has tensors that the base lacks, or of other shapes, or only some of
            the tensors of a part.

    Examples:
        >>> import torch
        >>> from lightning_merge.core.checkpoints.checkpoint import as_checkpoint
        >>> base = as_checkpoint({"body.weight": torch.zeros(2), "head.weight": torch.zeros(3)})
        >>> whole = completed(base, as_checkpoint({"body.weight": torch.ones(2)}))
        >>> whole.weights["body.weight"], whole.kept
        (tensor([1., 1.]), ['head.weight'])
    """
    held = align(base, {"source": source}).experts["source"]
    spelled = align_names(list(base), list(held))
    held = held.renamed({new: stored for stored, new in spelled.items()})
    missing = [name for name in base if name not in held]
    tied = twins(base, missing, [name for name in base if name in held])
    if problems := [*_problems(base, held, [name for name in missing if name not in tied])]:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" * (len(problems) > 5))
        raise InputError(
            f"{source.path or 'the weights'} do not fit {base.path or 'the network'}: {shown}. "
            "Give the network that they come from"
        )
    entries = {
        name: base.entry(name)
        if name not in held and name not in tied
        else held.entry(tied.get(name, name))
        for name in base
    }
    kept = [name for name in base if entries[name] is base.entry(name)]
    return Completed(Checkpoint(entries, path=source.path, metadata=source.metadata), kept)


def _problems(base: Checkpoint, held: Checkpoint, missing: Collection[str]) -> Iterator[str]:
    """Describe what does not fit."""
    if surplus := [name for name in held if name not in base]:
        yield f"it has no place for {enumerate_names(surplus, 3)}"
    for name in base:
        if name in held and held.shape(name) != base.shape(name):
            yield (f"{name} has shape {list(held.shape(name))} instead of {list(base.shape(name))}")
    prefix = common_prefix(list(base))
    partly = {_part(name, prefix) for name in held}
    absent = [n for n in missing if _part(n, prefix) in partly and base.dtype(n).is_floating_point]
    if absent:
        yield f"they lack {enumerate_names(absent, 3)}"


def _part(name: str, prefix: str) -> str:
    """Return the first level of a name below a prefix, or of the whole name without it."""
    own = prefix if name.startswith(prefix) else ""
    return own + name.removeprefix(own).split(".")[0]
