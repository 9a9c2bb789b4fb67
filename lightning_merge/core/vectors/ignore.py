"""Tensors that a user leaves out of a merge, by name or pattern."""

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
    """Return views of base and experts without ignored tensors, under the base's names.

    A tensor is ignored if a pattern matches its name in the base or in any expert. If the base
    ties an ignored tensor to one that takes part, it stays in the base, so that it gets the
    merged values and no outdated copy remains; a warning says so. It is ignored after all if an
    expert has different values for the two.

    Args:
        opened: "base" and the experts, by any name; the names of an expert's tensors may have
            another prefix than the base's, see `align_names`.
        patterns: Names, or shell-style patterns.
        absent: Names that patterns may match although no checkpoint has them any more.

    Returns:
        Views by the same names, including tensors that only the base or one expert has.

    Raises:
        InputError: A pattern matches no tensor, the names of an expert are ambiguous, or what
            remains is not a weight without the ignored tensors, see `check_numbers`.

    Examples:
        >>> import torch
        >>> from lightning_merge.core.checkpoints.checkpoint import as_checkpoint
        >>> base = as_checkpoint({"body.weight": torch.zeros(2), "head.weight": torch.zeros(3)})
        >>> mnist = as_checkpoint({"body.weight": torch.ones(2), "head.weight": torch.ones(9)})
        >>> views = taking_part({"base": base, "mnist": mnist}, ["head.*"])
        >>> list(views["mnist"])
        ['body.weight']
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
    for what, view in views.items():  # while ignored scales are still visible
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
    pairs = enumerate_names([f"{name} = {other}" for name, other in tied.items()], 5)
    warn(f"ignore={list(patterns)}: still merged, because tied in the base: {pairs}")
    order = {name: name for name in base if name in kept["base"] or name in tied}
    return {**kept, "base": base.renamed(order)}


def _spelled(
    what: str, opened: Mapping[str, Checkpoint], patterns: Sequence[str]
) -> dict[str, str]:
    """Map names as the base spells them to the stored ones; ignored names are not considered."""
    checkpoint = opened[what]
    ignored = {name for name in checkpoint if _is_covered(name, patterns)}
    wanted = [name for name in opened["base"] if not _is_covered(name, patterns)]
    try:
        spelled = align_names(wanted, list(checkpoint), ignored)
    except InputError as fault:
        raise InputError(f"{what} ({checkpoint.path}): {fault}") from None
    return {new: old for old, new in spelled.items() if new}


def _agree(expert: Checkpoint, name: str, other: str) -> bool:
    """Return whether an expert lacks one of two tensors, or has the same values in both."""
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
                f"ignore: no tensor matches {pattern!r}; names begin with "
                f"{enumerate_names(sorted({name.split('.')[0] for name in names}), 8)}"
            )
