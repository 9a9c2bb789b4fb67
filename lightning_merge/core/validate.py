"""Whether base and experts can be merged, told before anything is computed."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor

from lightning_merge.core.checkpoint import Checkpoint, as_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.core.scope import complete

_SHOWN = 5  # problems spelled out per model and kind
_SHOWN_MODELS = 10


def check_experts(
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    *,
    minimum: int = 2,
    finite: bool = True,
) -> dict[str, Checkpoint]:
    """Check that the experts are fine-tuned copies of the base, and report all that is not so.

    Names must agree, shapes be equal and dtypes of one kind (float16 beside float32 is fine,
    integers beside floats are not), values finite, and tensors that are tied in one model have
    equal values in the others. Names are compared as they are: `select` removes prefixes.

    Args:
        base: name -> tensor of the pretrained network.
        experts: task -> name -> tensor.
        minimum: the least number of experts.
        finite: whether to read every tensor, one at a time, and look for NaN and infinity.

    Returns:
        The experts as checkpoints. What the base ties and an expert lacks is there, see `complete`.

    Raises:
        InputError: all problems, by expert and name of the tensor; the first ones of each
            expert are spelled out, all are counted.
    """
    _check_kinds(base, experts)
    _check_count(base, experts, minimum)
    reference = as_checkpoint(base)
    problems = {"base": list(_not_finite(reference))} if finite else {}
    candidates = {t: complete(reference, as_checkpoint(expert)) for t, expert in experts.items()}
    for task, candidate in candidates.items():
        found = list(_mismatches(reference, candidate))
        if finite:
            found += _not_finite(candidate)
        problems[f"expert '{task}'"] = found
    problems = {model: found for model, found in problems.items() if found}
    if problems:
        raise InputError(_report(problems))
    return candidates


def _check_kinds(base: object, experts: object) -> None:
    """Check that both are mappings, of tensors and of such mappings."""
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
                    f"{what}: {name!r} is a {type(value).__name__}, no tensor: give a mapping from "
                    "names to tensors, such as a network's state_dict()"
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
        raise InputError(f"experts: {unnamed[0]!r} is no name for an expert: name it by its task")


def _mismatches(base: Checkpoint, expert: Checkpoint) -> Iterator[tuple[str, str]]:
    """Kind and description of each way in which an expert's tensors are not the base's."""
    for name in base:
        if name not in expert:
            yield "missing", name
            continue
        shape, wanted = expert.shape(name), base.shape(name)
        if shape != wanted:
            yield "of another shape", f"{name}: {list(shape)}, in the base {list(wanted)}"
        dtype, wanted_dtype = expert.dtype(name), base.dtype(name)
        if _kind(dtype) != _kind(wanted_dtype):
            yield "of another dtype", f"{name}: {dtype}, in the base {wanted_dtype}"
    for name in expert:
        if name not in base:
            yield "not in the base", name
    yield from _broken_ties(base, expert, "tied in the base but not here")
    yield from _broken_ties(expert, base, "tied here but not in the base")


def _broken_ties(tied: Checkpoint, other: Checkpoint, kind: str) -> Iterator[tuple[str, str]]:
    """Names that share one tensor in `tied` and have different values in `other`."""
    for first, *rest in tied.ties():
        for name in rest:
            if first in other and name in other and not _equal(other[first], other[name]):
                yield kind, f"{first} = {name}"


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "float"
    return "complex" if dtype.is_complex else "bool" if dtype == torch.bool else "integer"


def _not_finite(tensors: Checkpoint) -> Iterator[tuple[str, str]]:
    for name in tensors:
        if tensors.dtype(name).is_floating_point or tensors.dtype(name).is_complex:
            count = _count_not_finite(tensors[name])
            if count:
                yield "NaN or infinite", f"{name}: {count} of {tensors[name].numel()} values"


def _count_not_finite(tensor: Tensor) -> int:
    """The sum, one fast pass, is finite unless a value is not (or, rarely, it overflows)."""
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    total = tensor.sum() if tensor.is_complex() else tensor.sum(dtype=wide)
    return 0 if torch.isfinite(total) else int((~torch.isfinite(tensor)).sum())


def _report(problems: Mapping[str, list[tuple[str, str]]]) -> str:
    """Every model with a count by kind; the first examples of each, so that it stays readable."""
    total = sum(len(found) for found in problems.values())
    lines = [f"experts do not fit the base: {total} problem{'s' if total > 1 else ''}"]
    for position, (model, found) in enumerate(problems.items()):
        counts = Counter(kind for kind, _ in found)
        lines.append(f"  {model}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))
        if position < _SHOWN_MODELS:
            for kind, count in counts.items():
                texts = (text for other, text in found if other == kind)
                lines += [f"    {kind}: {text}" for text in islice(texts, _SHOWN)]
                lines += [f"    ... and {count - _SHOWN} more"] if count > _SHOWN else []
    lines.append("Give experts that were fine-tuned from this base")
    return "\n".join(lines)
