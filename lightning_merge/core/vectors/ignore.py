"""Tensors that a user leaves out of a merge, by names and patterns."""

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from lightning_merge.core.checkpoints.checkpoint import Checkpoint
from lightning_merge.core.checkpoints.equality import same_bits
from lightning_merge.core.checkpoints.forms import check_numbers
from lightning_merge.core.checkpoints.names import align_names, enumerate_names
from lightning_merge.core.errors import InputError, warn
from lightning_merge.core.vectors.scope import twins


def taking_part(
    opened: Mapping[str, Checkpoint], patterns: Sequence[str], absent: Collection[str] = ()
) -> dict[str, Checkpoint]:
    """Return views of base and experts without ignored tensors, in the base's spelling.

    A tensor is ignored where a pattern covers its name in the base or in any expert. What the base
    ties to a tensor that takes part stays in the base, so that it gets the merged values and no
    old copy stands beside them; a warning says so. It does not, where an expert has other values
    for the two.

    Args:
        opened: "base" and the experts, by any name; an expert's names may have another prefix
            than the base's, see `align_names`.
        patterns: Names, or patterns as of a shell.
        absent: Names that patterns may mean, though they are in no checkpoint any more.

    Returns:
        Views by the same names; what only the base or an expert has is there as well.

    Raises:
        InputError: A pattern names no tensor, it cannot be told which tensors of an expert are
            meant, or what is left is no weight without what is ignored, see `check_numbers`.
    """
    stored = {what: _spelled(what, opened, patterns) for what in opened}
    names = {name for new in stored.values() for pair in new.items() for name in pair}
    _check(patterns, names.union(absent))
    out = {
        new
        for spelled in stored.values()
        for new, old in spelled.items()
        if _is_covered(new, patterns) or _is_covered(old, patterns)
    }
    views = {what: opened[what].renamed(spelled) for what, spelled in stored.items()}
    kept = {
        what: view.renamed({n: n for n in view if n not in out}) for what, view in views.items()
    }
    if not kept["base"]:
        raise InputError(f"ignore={list(patterns)}: no tensor of the base is left to merge")
    for what, view in views.items():  # while scales that are ignored can be seen
        check_numbers(view, kept[what], what)
    base = opened["base"]
    left_out = [name for name in base if name not in kept["base"]]
    tied = {
        name: other
        for name, other in twins(base, left_out, kept["base"]).items()
        if all(_agree(expert, name, other) for what, expert in views.items() if what != "base")
    }
    if not tied:
        return kept
    told = enumerate_names([f"{name} = {other}" for name, other in tied.items()], 5)
    warn(f"ignore={list(patterns)}: tied in the base, and so merged together all the same: {told}")
    order = {name: name for name in base if name in kept["base"] or name in tied}
    return {**kept, "base": base.renamed(order)}


def _spelled(
    what: str, opened: Mapping[str, Checkpoint], patterns: Sequence[str]
) -> dict[str, str]:
    """Names as the base spells them, to the stored ones; those ignored have no say in it."""
    checkpoint = opened[what]
    ignored = {name for name in checkpoint if _is_covered(name, patterns)}
    wanted = [name for name in opened["base"] if not _is_covered(name, patterns)]
    try:
        spelled = align_names(wanted, list(checkpoint), ignored)
    except InputError as fault:
        raise InputError(f"{what} ({checkpoint.path}): {fault}") from None
    return {new: old for old, new in spelled.items() if new}


def _agree(expert: Checkpoint, name: str, other: str) -> bool:
    """Whether an expert lacks one of two tensors, or has the same values in both."""
    if name not in expert or other not in expert:
        return True
    alike = expert.dtype(name) == expert.dtype(other) and expert.shape(name) == expert.shape(other)
    return alike and same_bits(expert, name, expert, other)


def _is_covered(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check(patterns: Sequence[str], names: Collection[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"ignore: no tensor is called {pattern!r}; names begin with "
                f"{enumerate_names(sorted({name.split('.')[0] for name in names}), 8)}"
            )
