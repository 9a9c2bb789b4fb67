"""The merge command: checkpoints in, one checkpoint out."""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_merge.core.checkpoint import Checkpoint, open_checkpoint, select
from lightning_merge.core.errors import InputError
from lightning_merge.core.files import file_fingerprint
from lightning_merge.core.task_vectors import TaskVectors
from lightning_merge.core.validate import check_experts
from lightning_merge.core.writer import CheckpointWriter
from lightning_merge.methods.base import MergeMethod, Resources

Needed = Callable[[MergeMethod], tuple[Resources, dict[str, str]]]
"""From a method to what it needs, and the metadata that tell of it."""


def merge(**options: Any) -> None:
    """Merge fine-tuned experts of one base, or one of them and the base, into one checkpoint."""
    merge_files(resources=no_resources, **options)


def no_resources(method: MergeMethod) -> tuple[Resources, dict[str, str]]:
    """Return nothing beside the weights, to a method that needs nothing."""
    if method.needs != "nothing":
        raise InputError(
            f"method {type(method).__name__} needs {method.needs}: give --encoder and --data.root"
            + (" and --heads" if method.needs.endswith("heads") else "")
        )
    return Resources(), {}


def merge_files(
    resources: Needed,
    base: str,
    experts: dict[str, str],
    method: MergeMethod,
    output: str,
    overwrite: bool = False,
    ignore: Sequence[str] = (),
    jobs: int = 1,
    max_shard_size: str | int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
) -> None:
    """Merge files into a file.

    Args:
        resources: gives what the method needs beside weights, once all files have been found
            to fit.
        base: weights of the pretrained network: .safetensors, .pt, .ckpt or a Hub folder.
        experts: file of each expert by task, as in --experts.mnist F --experts.cars F.
        method: how to merge, as in --method Ties --method.density 0.2.
        output: .safetensors file to write; with max_shard_size, a folder.
        overwrite: replace the output if it exists.
        ignore: names or patterns, such as 'text.*', of tensors that take no part: the base's
            are copied, the experts' left out.
        jobs: number of processes that work on tensors at once; the result is the same.
        max_shard_size: bytes per file, such as 5GB, of a folder with an index as on the Hub.
        dtype: type of the merged floating-point tensors; by default the one that holds all
            values of base and experts.

    Raises:
        InputError: a file is missing or unreadable, experts do not fit the base, the output
            exists, or the method lacks what it needs.
    """
    target, files = Path(output), {"base": base}
    files |= {f"expert/{task}": file for task, file in experts.items()}
    _check_output(target, files, overwrite, max_shard_size is not None)
    if jobs < 1:
        raise InputError(f"jobs={jobs}: give 1 or more, or leave it out")
    shard_size = None if max_shard_size is None else _bytes(max_shard_size)
    started = time.perf_counter()
    opened = {what: open_checkpoint(file) for what, file in files.items()}
    whole = opened["base"]
    parts = {what: _without(checkpoint, ignore) for what, checkpoint in opened.items()}
    _check_patterns(ignore, opened.values())
    weights = parts.pop("base")
    sources = dict(zip(experts, (_like(weights, part) for part in parts.values()), strict=True))
    check_experts(weights, sources, minimum=1, finite=False)  # values are checked as they stream by
    given, about = resources(method)
    metadata = {
        "method": type(method).__name__,
        "hyperparameters": method.described(),
        **{what: file_fingerprint(file) for what, file in files.items()},
        **about,
    }
    layout = {name: (whole.dtype(name), whole.shape(name)) for name in whole}
    layout |= TaskVectors(weights, sources).layout()
    if dtype is not None:
        floating = {name for name, (kind, _) in layout.items() if kind.is_floating_point}
        layout |= {name: (getattr(torch, dtype), layout[name][1]) for name in floating}
    with CheckpointWriter(
        target, layout, metadata=metadata, overwrite=overwrite, max_shard_size=shard_size
    ) as writer:
        method.merge_to(writer, weights, sources, jobs=jobs, **given._asdict())
        for name in set(whole) - set(weights):
            writer.write(name, 0, whole[name].reshape(-1))
        for checkpoint in opened.values():
            checkpoint.check_unchanged()
    seconds = time.perf_counter() - started
    print(f"{target}: {len(weights)} tensors of {len(sources)} experts in {seconds:.1f} s")


def _check_output(target: Path, files: Mapping[str, str], overwrite: bool, folder: bool) -> None:
    if target.exists() and not overwrite:
        raise InputError(f"output={str(target)!r} exists: give another path or --overwrite true")
    if not folder and target.suffix != ".safetensors":
        raise InputError(
            f"output={str(target)!r}: the format is safetensors, so name it "
            f"{target.with_suffix('.safetensors').name!r}"
        )
    for what, file in files.items():
        if target.exists() and Path(file).exists() and target.samefile(file):
            raise InputError(f"output={str(target)!r} is the {what} itself: give another path")


def _bytes(size: str | int) -> int:
    """Return the number of bytes that 5GB, 500 MB, or a number stands for."""
    match = re.fullmatch(r"\s*(\d+)\s*([KMGT]?)B?\s*", str(size), re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise InputError(f"max_shard_size={size!r}: give a number of bytes, or one as 5GB")
    return int(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")


def _without(checkpoint: Checkpoint, patterns: Sequence[str]) -> Checkpoint:
    """Return the tensors that no pattern names."""
    kept = [name for name in checkpoint if not any(fnmatchcase(name, p) for p in patterns)]
    return checkpoint.renamed({name: name for name in kept})


def _check_patterns(patterns: Sequence[str], checkpoints: Iterable[Checkpoint]) -> None:
    names = {name for checkpoint in checkpoints for name in checkpoint}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"ignore: no tensor is called {pattern!r}; names are as in {min(names)!r}"
            )


def _like(base: Mapping[str, Tensor], expert: Checkpoint) -> Checkpoint:
    """Return the expert under the base's names where only a prefix differs."""
    if set(base) == set(expert) or len(base) != len(expert):
        return expert
    return select(expert, base)
