"""Verification that files are those from which a merged file says it was made."""

from collections.abc import Mapping
from pathlib import Path

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.checkpoints.digests import is_recorded
from lightning_merge.core.errors import InputError


def verify_provenance(
    merged: str | Path,
    *,
    base: str | Path | None = None,
    experts: Mapping[str, str | Path] | None = None,
) -> list[str]:
    """Compare files with those recorded in a merged file.

    A record `sha256:...` covers a whole file; `sample:...` covers its size and a sample of its
    content, which tells files apart but does not prove that two are equal.

    Args:
        merged: The output of a run or of `merge`.
        base: The file that should be its base; not checked by default.
        experts: Task -> file that should be its expert, for all tasks; not checked by default.

    Returns:
        One sentence for each file that differs or is missing, and for each expert that is not
        recorded or not given; empty if everything matches.

    Examples:
        >>> import torch
        >>> from lightning_merge.core.checkpoints.checkpoint import save_checkpoint
        >>> from lightning_merge.core.checkpoints.digests import file_record
        >>> base = save_checkpoint({"w": torch.zeros(1)}, "base.safetensors")
        >>> record = {"base": file_record(base, "sha256")}
        >>> merged = save_checkpoint({"w": torch.ones(1)}, "merged.safetensors", metadata=record)
        >>> verify_provenance(merged, base=base)
        []
        >>> verify_provenance(merged, base=merged)
        ['base: merged.safetensors is not the recorded sha256:...']
    """
    try:
        metadata = open_checkpoint(merged).metadata
    except InputError as fault:
        return [f"merged: {fault}"]
    given = {} if base is None else {"base": base}
    given |= {f"expert/{task}": file for task, file in (experts or {}).items()}
    recorded = {name for name in metadata if name.startswith("expert/")}
    left_out = [] if experts is None else sorted(recorded - given.keys())
    compared = [_mismatch(name, file, metadata.get(name)) for name, file in given.items()]
    return [*filter(None, compared), *(f"{name}: recorded, but not given" for name in left_out)]


def _mismatch(name: str, file: str | Path, record: str | None) -> str:
    """Return what is wrong with one file; empty if it is the recorded one."""
    if record is None:
        return f"{name}: not recorded"
    try:
        return "" if is_recorded(file, record) else f"{name}: {file} is not the recorded {record}"
    except InputError as fault:
        return f"{name}: {fault}"
