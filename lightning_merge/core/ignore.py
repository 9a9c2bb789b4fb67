"""Tensors that a user leaves out of a merge, by names and patterns."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from lightning_merge.core.checkpoint import Checkpoint
from lightning_merge.core.errors import InputError, warn
from lightning_merge.core.names import enumerate_names
from lightning_merge.core.scope import same_bits, twins


def taking_part(opened: Mapping[str, Checkpoint], patterns: Sequence[str]) -> dict[str, Checkpoint]:
    """Views of base and experts without the tensors that are ignored.

    What the base ties to a tensor that takes part stays in the base, so that it gets the merged
    values and no old copy stands beside them; a warning says so. It does not, where an expert has
    other values for the two.

    Args:
        opened: "base" and the experts, by any name.
        patterns: names, or patterns as of a shell.

    Raises:
        InputError: a pattern names no tensor.
    """
    _check(patterns, opened.values())
    kept = {what: _without(checkpoint, patterns) for what, checkpoint in opened.items()}
    base = opened["base"]
    left_out = [name for name in base if name not in kept["base"]]
    tied = {
        name: other
        for name, other in twins(base, left_out, kept["base"]).items()
        if all(_agree(expert, name, other) for what, expert in opened.items() if what != "base")
    }
    if not tied:
        return kept
    told = enumerate_names([f"{name} = {other}" for name, other in tied.items()], 5)
    warn(f"ignore={list(patterns)}: tied in the base, and so merged together all the same: {told}")
    order = {name: name for name in base if name in kept["base"] or name in tied}
    return {**kept, "base": base.renamed(order)}


def _agree(expert: Checkpoint, name: str, other: str) -> bool:
    """Whether an expert lacks one of two tensors, or has the same values in both."""
    if name not in expert or other not in expert:
        return True
    alike = expert.dtype(name) == expert.dtype(other) and expert.shape(name) == expert.shape(other)
    return alike and same_bits(expert, name, expert, other)


def _without(checkpoint: Checkpoint, patterns: Sequence[str]) -> Checkpoint:
    """A view of the tensors that no pattern names."""
    kept = [name for name in checkpoint if not any(fnmatchcase(name, p) for p in patterns)]
    return checkpoint.renamed({name: name for name in kept})


def _check(patterns: Sequence[str], checkpoints: Iterable[Checkpoint]) -> None:
    names = {name for checkpoint in checkpoints for name in checkpoint}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"ignore: no tensor is called {pattern!r}; names are as in {min(names)!r}"
            )
