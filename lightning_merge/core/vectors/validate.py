"""Checks that base and experts can be merged, before anything is computed."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.checkpoint import Checkpoint, as_checkpoint
from lightning_merge.core.checkpoints.equality import differ
from lightning_merge.core.checkpoints.forms import check_factors, check_numbers
from lightning_merge.core.checkpoints.names import enumerate_names, is_statistic
from lightning_merge.core.checkpoints.patterns import ignore_option
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.scope import complete, is_merged

MISSING, SURPLUS, CHANGED = "missing", "not in the base", "not merged but changed"
_IGNORABLE = (MISSING, SURPLUS, CHANGED)
_SHOWN = 5  # problems spelled out per model and kind
_SHOWN_MODELS = 10


class _Problem(NamedTuple):
    """A tensor that cannot be merged, and why."""

    kind: str
    name: str
    text: str = ""


def check_experts(
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    *,
    minimum: int = 2,
    finite: bool = True,
) -> dict[str, Checkpoint]:
    """Check that the experts are fine-tuned copies of the base, and report all differences.

    Names must agree, shapes be equal and dtypes of one kind (float16 beside float32 is fine,
    integers beside floats are not). Values must be finite unless base and all experts have the same
    ones, and tensors that are tied in one model must have equal values in the others. Tensors that
    are copied rather than merged must be the same in every expert: integers, bools and complex
    numbers, except counts of batches. Adapters and quantised numbers are not weights, see `forms`.
    Names are compared as they are: `taking_part` and `select` remove prefixes.

    Args:
        base: Name -> tensor of the pretrained network.
        experts: Task -> name -> tensor.
        minimum: Smallest number of experts.
        finite: Whether to read every tensor, one at a time, and look for NaN and infinity.

    Returns:
        The experts as checkpoints, completed with tensors that the base ties, see `complete`.

    Raises:
        InputError: All problems, by expert and name of the tensor; the first ones of each
            expert are spelled out, all are counted.

    Examples:
        >>> base = {"w": torch.zeros(2)}
        >>> check_experts(base, {"mnist": base, "cars": {"w": torch.zeros(3)}})
        Traceback (most recent call last):
        lightning_merge.core.errors.InputError: experts do not fit the base: 1 problem
          expert 'cars': 1 of another shape
        ...
    """
    _check_kinds(base, experts)
    _check_count(base, experts, minimum)
    reference = as_checkpoint(base)
    candidates = {t: complete(reference, as_checkpoint(expert)) for t, expert in experts.items()}
    models = {"base": reference, **{f"expert '{t}'": model for t, model in candidates.items()}}
    for what, model in models.items():
        _check_form(what, model)
    check_factors(reference, candidates)
    problems: dict[str, list[_Problem]] = {"base": []}
    problems |= {what: [*_mismatches(reference, models[what])] for what in [*models][1:]}
    for what, faults in _not_finite(models).items() if finite else ():
        problems[what] += faults
    problems = {what: faults for what, faults in problems.items() if faults}
    if problems:
        names = {name for model in models.values() for name in model}
        raise InputError(_report(problems, names, len(reference)))
    return candidates


def _check_kinds(base: object, experts: object) -> None:
    """Check that the base maps names to tensors, and the experts tasks to such mappings."""
    if not isinstance(experts, Mapping):
        raise InputError(
            f"experts is a {type(experts).__name__}: give a mapping {{task: weights}}, for example "
            "{'mnist': network.state_dict()}"
        )
    for what, weights in {"base": base, **{f"expert {t!r}": e for t, e in experts.items()}}.items():
        if not isinstance(weights, Mapping):
            raise InputError(
                f"{what} is a {type(weights).__name__}: give a mapping from names to tensors, such "
                "as a network's state_dict()"
            )
        if isinstance(weights, Checkpoint):
            continue
        for name, value in weights.items():
            if not isinstance(value, Tensor):
                raise InputError(
                    f"{what}: {name!r} is a {type(value).__name__}, not a tensor: give a mapping "
                    "from names to tensors, such as a network's state_dict()"
                )


def _check_count(
    base: Mapping[str, Tensor], experts: Mapping[str, Mapping[str, Tensor]], minimum: int
) -> None:
    if not base:
        raise InputError("base holds no tensors: give the pretrained network's checkpoint")
    if len(experts) < minimum:
        given = ", ".join(f"'{task}'" for task in experts) or "none"
        raise InputError(
            f"experts: {given} given, but at least {minimum} "
            f"{'is' if minimum == 1 else 'are'} needed: add experts"
        )
    unnamed = [task for task in experts if not isinstance(task, str) or not task.strip()]
    if unnamed:
        raise InputError(f"experts: {unnamed[0]!r} is not a name: name each expert by its task")


def _check_form(what: str, model: Checkpoint) -> None:
    """Check that a model has something to merge, in a form that can be merged."""
    shown = enumerate_names(list(model), 3)
    if model and all(map(is_statistic, model)):
        raise InputError(
            f"{what} holds only BatchNorm statistics ({shown}), so there is nothing to merge: "
            "give the checkpoint of the whole network"
        )
    if what == "base" and not any(is_merged(name, model.dtype(name)) for name in model):
        raise InputError(
            f"base holds no floating-point weights ({shown}), so there is nothing to merge: "
            "give the checkpoint of the whole network"
        )
    check_numbers(model, model, what)


def _mismatches(base: Checkpoint, expert: Checkpoint) -> Iterator[_Problem]:
    """Yield each way in which an expert's tensors differ from the base's."""
    for name in base:
        if name not in expert:
            yield _Problem(MISSING, name)
            continue
        shape, wanted = expert.shape(name), base.shape(name)
        if shape != wanted:
            text = f": {list(shape)}, in the base {list(wanted)}"
            yield _Problem("of another shape", name, text)
        dtype, wanted_dtype = expert.dtype(name), base.dtype(name)
        if _kind(dtype) != _kind(wanted_dtype):
            yield _Problem("of another dtype", name, f": {dtype}, in the base {wanted_dtype}")
        elif shape == wanted and _is_copied(name, dtype) and differ(base, expert, name):
            yield _Problem(CHANGED, name, f": {dtype}")
    for name in expert:
        if name not in base:
            yield _Problem(SURPLUS, name)
    yield from _broken_ties(base, expert, "tied in the base but not here")
    yield from _broken_ties(expert, base, "tied here but not in the base")


def _is_copied(name: str, dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not is_statistic(name)


def _broken_ties(tied: Checkpoint, other: Checkpoint, kind: str) -> Iterator[_Problem]:
    """Yield names that share one tensor in `tied` and have different values in `other`."""
    for first, *rest in tied.ties():
        for name in rest:
            if first in other and name in other and not _equal(other[first], other[name]):
                yield _Problem(kind, first, f" = {name}")


def _equal(a: Tensor, b: Tensor) -> bool:
    bits = (a.contiguous().view(-1).view(torch.uint8) for a in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "float"
    return "complex" if dtype.is_complex else "bool" if dtype == torch.bool else "integer"


def _not_finite(models: Mapping[str, Checkpoint]) -> dict[str, list[_Problem]]:
    """Return NaN and infinity by model, except in tensors that are the same in all (masks)."""
    by_model = {what: _counts(model) for what, model in models.items()}
    base, *experts = models.values()
    for name in list(by_model["base"]):
        if all(name in expert and not differ(base, expert, name) for expert in experts):
            for counts in by_model.values():
                counts.pop(name, None)
    return {
        what: [_Problem("NaN or infinite", name, f": {text}") for name, text in counts.items()]
        for what, counts in by_model.items()
    }


def _counts(tensors: Checkpoint) -> dict[str, str]:
    """Return the number of values that are not finite, for each tensor that has some."""
    texts = {}
    for name in tensors:
        if tensors.dtype(name).is_floating_point or tensors.dtype(name).is_complex:
            count = _count_not_finite(tensors[name])
            if count:
                texts[name] = f"{count} of {tensors[name].numel()} values"
    return texts


def _count_not_finite(tensor: Tensor) -> int:
    """Return the number of values that are not finite.

    Their sum, one fast pass, is finite if they all are, unless it overflows.
    """
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    total = tensor.sum() if tensor.is_complex() else tensor.sum(dtype=wide)
    return 0 if torch.isfinite(total) else int((~torch.isfinite(tensor)).sum())


def _report(problems: Mapping[str, list[_Problem]], names: Collection[str], size: int) -> str:
    """List every model with a count by kind, and the first examples of each kind.

    Args:
        problems: By model.
        names: Names of all tensors.
        size: Number of tensors in the base.
    """
    total = sum(len(listed) for listed in problems.values())
    lines = [f"experts do not fit the base: {total} problem{'s' if total > 1 else ''}"]
    for position, (model, listed) in enumerate(problems.items()):
        counts = Counter(problem.kind for problem in listed)
        lines.append(f"  {model}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
        if position < _SHOWN_MODELS:
            for kind, count in counts.items():
                texts = (f"{p.name}{p.text}" for p in listed if p.kind == kind)
                lines += [f"    {kind}: {text}" for text in islice(texts, _SHOWN)]
                lines += [f"    ... and {count - _SHOWN} more"] if count > _SHOWN else []
    every = [problem for listed in problems.values() for problem in listed]
    kinds = {kind: {p.name: None for p in every if p.kind == kind} for kind in _IGNORABLE}
    if kinds[CHANGED]:
        lines.append(
            "Integers, bools and complex numbers are not merged: dequantise weights first; "
            "keep the base's counters and indices with --ignore"
        )
    lines.append("Give experts that were fine-tuned from this base")
    left = [*dict.fromkeys(name for listed in kinds.values() for name in listed)]
    if left and 2 * len(kinds[MISSING] | kinds[SURPLUS]) <= size:
        option = ignore_option(left, [name for name in names if name not in left])
        lines[-1] += f", or leave tensors out of the merge: {option}"
    return "\n".join(lines)
