"""Whether files are those that a merged file says it was made from."""

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
    """Compare files with those that a merged file was made from.

    A record `sha256:...` is of a whole file; `sample:...` of its size and a sample of its content,
    which tells files apart but does not show that two are equal.

    Args:
        merged: What a run or `merge` has written.
        base: The file that should be its base; not looked at by default.
        experts: Task to the file that should be its expert, all of them; not looked at by default.

    Returns:
        One sentence for each file that is another, or missing, and for each expert that is not
        recorded or not given; nothing where all are the same.
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
    """Return what is wrong with one file; nothing if it is the recorded one."""
    if record is None:
        return f"{name}: not recorded"
    try:
        return "" if is_recorded(file, record) else f"{name}: {file} is not the recorded {record}"
    except InputError as fault:
        return f"{name}: {fault}"
