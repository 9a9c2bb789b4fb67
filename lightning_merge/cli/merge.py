"""The merge command: checkpoints in, one checkpoint out."""

import json
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from lightning_merge.cli.companions import copy_companions, how_to_load
from lightning_merge.cli.merge_plan import MergePlan, estimate, in_bytes, merge_plan
from lightning_merge.core.checkpoints.activation import KEY, agreed
from lightning_merge.core.checkpoints.checkpoint import Checkpoint, open_checkpoint
from lightning_merge.core.checkpoints.digests import file_record
from lightning_merge.core.checkpoints.hub import given_as, repository
from lightning_merge.core.checkpoints.library import libraries_of
from lightning_merge.core.checkpoints.safetensors_file import Layout
from lightning_merge.core.checkpoints.writer import CheckpointWriter
from lightning_merge.core.checks import require_in
from lightning_merge.core.errors import InputError, warn
from lightning_merge.core.facts import Needs
from lightning_merge.core.vectors.headers import check_before_fetching
from lightning_merge.core.vectors.ignore import taking_part
from lightning_merge.core.vectors.scope import Kind as Scope
from lightning_merge.core.vectors.suspicions import suspicions
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.towers import align, summary
from lightning_merge.core.vectors.validate import check_experts
from lightning_merge.methods.base import MergeMethod, Resources

Needed = Callable[[MergeMethod, Checkpoint], tuple[Resources, dict[str, str]]]
"""Takes a method and the base; returns what the method needs, and metadata that describe it."""


def merge(**options: Any) -> None:
    """Merge fine-tuned experts of one base, or one of them and the base, into one checkpoint."""
    merge_files(resources=no_resources, **options)  # `resources` is not a command-line option


def no_resources(method: MergeMethod, base: Checkpoint) -> tuple[Resources, dict[str, str]]:
    """Return empty resources for a method that needs nothing besides weights."""
    needs = method.requirements().needs
    if needs:
        raise InputError(
            f"method {type(method).__name__} needs {needs.words()}: give --encoder and --data.root"
            + (" and --heads" if Needs.HEADS in needs else "")
        )
    return Resources(), {}


def merge_files(
    base: str,
    experts: dict[str, str],
    method: MergeMethod,
    output: str,
    overwrite: bool = False,
    ignore: Sequence[str] = (),
    scope: Scope = "changed",
    jobs: int = 1,
    max_shard_size: str | int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    prefix: dict[str, str] | None = None,
    dry_run: bool = False,
    resources: Needed = no_resources,
) -> None:
    """Merge files into a file; available in Python as `lightning_merge.merge`.

    Args:
        base: Weights of the pretrained network: .safetensors, .pt, .ckpt, a Hub folder, or a name
            on the Hub.
        experts: File of each expert by task, as in --experts.mnist F --experts.cars F.
        method: How to merge, as in --method Ties --method.density 0.2.
        output: .safetensors file to write; with max_shard_size, a folder.
        overwrite: Replace the output if it exists.
        ignore: Name, pattern such as 'text.*', or list of them, for tensors to leave unmerged:
            the base's are copied, the experts' dropped. Names may be those in the base's file or
            in an expert's.
        scope: Tensors that count in quantiles, ranks and masks: "changed" takes those that an
            expert has changed, "all" takes every tensor, as published code does.
        jobs: Number of processes that work on tensors in parallel; the result is the same.
        max_shard_size: Bytes per file, such as 5GB, to write a folder with an index as on the Hub;
            the base's configuration and tokenizer files are copied into it.
        dtype: Type of merged tensors; by default the one that holds all values of base and
            experts, or bfloat16 if all are float8. Copied tensors keep their own type.
        prefix: Prefix of one network's tensor names in a file that holds several, by expert or
            "base", as in --prefix.base model. --prefix.mnist ema.; other tensors of the file are
            dropped. A prefix shared by all names of a file may be omitted.
        dry_run: Say what would be merged, copied and left out, how large it is and how long it
            takes, and write nothing.
        resources: Returns what the method needs besides weights, and is called once all files
            are known to fit; by default, the method must need nothing else.

    Raises:
        InputError: A file is missing or unreadable, experts do not fit the base, the output
            exists, the method lacks what it needs, or a value does not fit the type.
    """
    target = Path(output)
    files = {"base": base, **{f"expert/{task}": file for task, file in experts.items()}}
    _check_output(target, files, overwrite, max_shard_size is not None)
    require_in("[1, inf)", jobs=jobs)
    shard_size = None if max_shard_size is None else _bytes(max_shard_size)
    started = time.perf_counter()
    inputs = _inputs(files, ignore, prefix or {})
    vectors = _task_vectors(inputs, scope)
    layout = _layout(inputs, vectors, dtype)
    plan = merge_plan(inputs.whole, vectors, layout, inputs.passed, inputs.dropped)
    if dry_run:
        if resources is no_resources:
            no_resources(method, inputs.whole)
        _tell_plan(target, plan, estimate(plan, vectors, method))
        return
    given, about = resources(method, inputs.whole)
    own = {"method": type(method).__name__, "hyperparameters": method.described()}
    metadata = {**own, "scope": scope, **inputs.about, **about}
    with CheckpointWriter(
        target, layout, metadata=metadata, overwrite=overwrite, max_shard_size=shard_size
    ) as writer:
        method.merge_to(writer, inputs.base, inputs.experts, given._replace(scope=scope), jobs)
        for name in set(inputs.whole) - set(inputs.base):
            writer.write(name, 0, inputs.whole[name].reshape(-1))
        for checkpoint in inputs.opened:
            checkpoint.check_unchanged()
    copied = [] if shard_size is None else copy_companions(inputs.whole, target)
    print(f"{target}: {plan.line}, in {time.perf_counter() - started:.1f} s")
    if inputs.passed:
        print(f"no expert has, so the base's are copied: {summary(inputs.passed)}")
    place = inputs.whole.path
    libraries = [] if place is None else libraries_of(place.parent)
    print(how_to_load(target, next(iter(libraries), None), base, copied))


def _tell_plan(target: Path, plan: MergePlan, estimated: str) -> None:
    """Print what a merge would make of every tensor."""
    print(f"{target} would hold {len(plan.layout)} tensors, {in_bytes(plan.size)}:")
    for line in plan.lines():
        print(line)
    print(estimated)
    print("nothing was written")


class _Inputs(NamedTuple):
    """The content of the input files.

    Attributes:
        opened: All checkpoints.
        whole: The base as stored.
        base: The base's tensors to merge.
        experts: The tensors to merge of each expert, under the base's names.
        passed: Names that no expert has, so that they are not merged.
        dropped: Names of each expert's tensors that take no part.
        about: Metadata that describe the files.
    """

    opened: Collection[Checkpoint]
    whole: Checkpoint
    base: Checkpoint
    experts: dict[str, Checkpoint]
    passed: Sequence[str]
    dropped: dict[str, list[str]]
    about: dict[str, str]


def _inputs(
    files: Mapping[str, str], ignore: Sequence[str], prefixes: Mapping[str, str]
) -> _Inputs:
    """Open base and experts, and determine which tensors to merge under which names."""
    check_before_fetching(files, ignore, _by_file(prefixes))
    opened = _open(files, prefixes)
    experts = [what for what in files if what != "base"]
    about = {what: file_record(file, "sample") for what, file in files.items()}
    about |= {f"prefix/{what}": given for what, given in _by_file(prefixes).items()}
    if named := {what: file for what, file in files.items() if repository(file) is not None}:
        about["repositories"] = json.dumps(named)
    if activation := agreed(files, opened):
        about[KEY] = activation
    aligned = align(opened["base"], {what: opened[what] for what in experts})
    parts = taking_part({"base": aligned.base, **aligned.experts}, ignore, aligned.passed)
    return _Inputs(
        opened.values(),
        opened["base"],
        parts["base"],
        {what.removeprefix("expert/"): parts[what] for what in experts},
        aligned.passed,
        {
            what.removeprefix("expert/"): _dropped(aligned.experts[what], parts[what])
            for what in experts
        },
        about,
    )


def _dropped(expert: Checkpoint, part: Checkpoint) -> list[str]:
    """Return the names of an expert's tensors that are not among those that take part."""
    used = {id(part.entry(name)) for name in part}
    return [name for name in expert if id(expert.entry(name)) not in used]


def _task_vectors(inputs: _Inputs, scope: Scope) -> TaskVectors:
    """Return the task vectors of experts that fit the base; values are checked when read."""
    experts = check_experts(inputs.base, inputs.experts, minimum=1, finite=False)
    vectors = TaskVectors(inputs.base, experts, scope=scope)
    for suspicion in suspicions(vectors):
        warn(suspicion)
    return vectors


def _layout(inputs: _Inputs, vectors: TaskVectors, dtype: str | None) -> Layout:
    """Return the type and shape of every output tensor; `dtype` applies to merged ones."""
    layout = {name: (inputs.whole.dtype(name), inputs.whole.shape(name)) for name in inputs.whole}
    layout |= vectors.stored.layout()
    if dtype is not None:
        layout |= {n: (getattr(torch, dtype), layout[n][1]) for n in vectors.stored.computed()}
    return layout


def _check_output(target: Path, files: Mapping[str, str], overwrite: bool, folder: bool) -> None:
    if target.exists() and not overwrite:
        raise InputError(f"output={str(target)!r} exists: give another path or --overwrite true")
    if folder and target.is_file():
        raise InputError(
            f"output={str(target)!r} is a file; max_shard_size writes a folder: give another path"
        )
    if not folder and target.suffix != ".safetensors":
        raise InputError(
            f"output={str(target)!r}: the format is safetensors, so name it "
            f"{target.with_suffix('.safetensors').name!r}"
        )
    for what, file in files.items():
        if target.exists() and Path(file).exists() and target.samefile(file):
            raise InputError(f"output={str(target)!r} is the {what} itself: give another path")


def _bytes(size: str | int) -> int:
    """Return the number of bytes in a size such as 5GB or 500 MB, or in a plain number."""
    match = re.fullmatch(r"\s*(\d+)\s*([KMGT]?)B?\s*", str(size), re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise InputError(f"max_shard_size={size!r}: give a number of bytes, or one as 5GB")
    return int(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")


def _open(files: Mapping[str, str], prefixes: Mapping[str, str]) -> dict[str, Checkpoint]:
    """Open each file, restricted to its prefix if it has one, keyed as in `files`."""
    given = _by_file(prefixes)
    if unknown := [what for what in given if what not in files]:
        name, *known = (what.removeprefix("expert/") for what in [unknown[0], *files])
        raise InputError(
            f"prefix.{name}: unknown expert {name!r}; give it for one of {', '.join(known)}"
        )
    opened = {}
    for what, file in files.items():
        with given_as(f"--{what.replace('expert/', 'experts.')}"):
            opened[what] = open_checkpoint(file, prefix=given.get(what))
    return opened


def _by_file(prefixes: Mapping[str, str]) -> dict[str, str]:
    return {what if what == "base" else f"expert/{what}": p for what, p in prefixes.items()}
