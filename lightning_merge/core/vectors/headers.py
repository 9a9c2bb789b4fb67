"""Base and experts compared by their headers, before any weights are downloaded."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.checkpoint import Checkpoint, open_checkpoint, open_header
from lightning_merge.core.checkpoints.names import align_names, enumerate_names
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.towers import align

_SHOWN = 3


def check_before_fetching(
    files: Mapping[str, str],
    ignore: Sequence[str] = (),
    prefixes: Mapping[str, str] | None = None,
) -> None:
    """Refuse networks on the Hub that cannot be merged, by the headers of their files.

    Nothing is asked if every file is on this machine. What a header cannot tell, such as which
    tensors are tied, is left to `check_experts`, and so are repositories without safetensors.

    Args:
        files: "base" and the experts, by name, as in `open_checkpoint`.
        ignore: Names or patterns of tensors that take no part.
        prefixes: Prefix of the tensors' names by file, as in `open_checkpoint`.

    Raises:
        InputError: An expert's tensors do not fit the base's.

    Examples:
        >>> check_before_fetching({"base": "base.safetensors", "mnist": "mnist.safetensors"})
    """
    headers = {what: open_header(file, (prefixes or {}).get(what)) for what, file in files.items()}
    if not any(headers.values()):
        return
    opened = {
        what: header or open_checkpoint(files[what], prefix=(prefixes or {}).get(what))
        for what, header in headers.items()
        if header or not hub.would_fetch(files[what])
    }
    base = opened.pop("base", None)
    problems = {what: [*_problems(base, expert, ignore)] for what, expert in opened.items() if base}
    lines = [f"  {what}: {'; '.join(faults)}" for what, faults in problems.items() if faults]
    if lines:
        raise InputError(
            "experts do not fit the base, as their headers say; no weights were downloaded\n"
            + "\n".join(lines)
            + "\nGive experts that were fine-tuned from this base"
        )


def _problems(base: Checkpoint, expert: Checkpoint, ignore: Sequence[str]) -> Iterator[str]:
    """Describe what is wrong whatever the values are."""

    def counts(name: str, checkpoint: Checkpoint) -> bool:
        ignored = any(fnmatchcase(name, pattern) for pattern in ignore)
        return not ignored and checkpoint.dtype(name).is_floating_point

    aligned = align(base, {"expert": expert})
    own = aligned.experts["expert"]
    wanted = [name for name in aligned.base if counts(name, aligned.base)]
    stored = [name for name in own if counts(name, own)]
    spelled = {new: old for old, new in align_names(wanted, stored).items()}
    shapes = Counter(base.shape(name) for name in wanted if name in spelled)
    missing = [n for n in wanted if n not in spelled and not shapes[base.shape(n)]]  # not tied
    surplus = [new for new in spelled if new not in base and counts(new, own.renamed(spelled))]
    if missing:
        yield f"{len(missing)} missing ({enumerate_names(missing, _SHOWN)})"
    if surplus:
        yield f"{len(surplus)} not in the base ({enumerate_names(surplus, _SHOWN)})"
    others = [
        f"{name} {list(own.shape(spelled[name]))}, in the base {list(base.shape(name))}"
        for name in wanted
        if name in spelled and own.shape(spelled[name]) != base.shape(name)
    ]
    if others:
        yield f"{len(others)} of another shape ({enumerate_names(others, _SHOWN)})"
