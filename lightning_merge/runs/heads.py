"""The heads of a zoo: given by the user, or made per task whenever their inputs change."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.checkpoint import file_hash, open_checkpoint
from lightning_merge.core.checkpoints.files import locked
from lightning_merge.core.errors import InputError
from lightning_merge.core.progress import detail, skipped, stage
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.data.prompts import prompts, resolved
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.head_files import load_heads, save_heads
from lightning_merge.models.heads import Head
from lightning_merge.modules.heads import (
    PROMPTS,
    HeadFiles,
    by_task,
    fitting_heads,
    head_file,
    head_files,
)
from lightning_merge.modules.make_heads import make_heads
from lightning_merge.modules.zoo import Zoo
from lightning_merge.runs import record
from lightning_merge.runs.stage import fingerprint

HEADS = "heads"
"""The stage that makes them."""
_KIND = "make_heads"
"""Metadata key for how the heads were made."""
_FINGERPRINT = "fingerprint/"
"""Prefix, before a task's name, of the metadata key for the fingerprint of that task's head."""


class ZooHeads:
    """The classification heads of a zoo.

    Args:
        zoo: Names the file or files of the heads, and how to make missing ones.
        tasks: Tasks that need a head.

    Examples:
        >>> zoo = Zoo("base.safetensors", "{task}.safetensors", "head_{task}.pt")
        >>> ZooHeads(zoo, ["cars"]).are_given()
        True
    """

    def __init__(self, zoo: Zoo, tasks: Sequence[str]) -> None:
        self.zoo, self.files, self.tasks = zoo, zoo.heads, tuple(tasks)

    def are_given(self) -> bool:
        """Whether the user supplies them: one file per task, on the Hub, or not made here."""
        if not isinstance(self.files, str) or by_task(self.files):
            return True
        if Path(self.files).exists():
            return not _kept(self.files, _FINGERPRINT)
        return hub.exists(self.files, plain=False)

    def check(self) -> None:
        """Check that per-task files exist, and that heads made earlier are of the same kind.

        Raises:
            InputError: The head of a task is missing, or the file holds heads of another kind.
        """
        for task in self.tasks if by_task(self.files) else ():
            if not hub.exists(file := head_file(self.files, task)):
                raise InputError(
                    f"zoo.heads={self.files!r}: the head of {task!r} is missing, {file} does not "
                    "exist; give it, or one path for all tasks, where heads are made"
                )
        if self.are_given():
            return
        path = Path(str(self.files))
        kind = open_checkpoint(path).metadata.get(_KIND) if path.exists() else None
        if kind not in (None, self._kind):
            raise InputError(
                f"zoo.heads={self.files!r} holds heads of another kind, which other networks were "
                f"trained or measured with: {kind}; this run makes {self._kind}. Give another "
                "file, or remove this one"
            )

    def check_fit(self, data: MergeDataModule, encoder: Encoder) -> None:
        """Check that heads supplied by the user match the tasks and the encoder.

        Raises:
            InputError: See `fitting_heads`.
        """
        if self.are_given():
            fitting_heads(self.files, data, encoder, self.tasks)

    def make(self, encoder: Encoder, data: MergeDataModule, inputs: Mapping[str, str]) -> None:
        """Make the heads that are missing or whose inputs changed; keep those of other tasks.

        Args:
            encoder: Architecture of the base.
            data: The tasks, loaded.
            inputs: Hashes of the "base" and of every task's images.
        """
        if self.are_given():
            return
        path = Path(str(self.files))
        wanted = {task: self.made_from(encoder, data, task, inputs) for task in self.tasks}
        if not _lacking(path, wanted):
            skipped(HEADS, "there already")
            return
        with locked(path):
            if not (lacking := _lacking(path, wanted)):  # another run has made them meanwhile
                return
            heads: dict[str, Head] = {}
            known: dict[str, str] = {}
            if path.exists():
                heads, known = load_heads(path), _kept(path, _FINGERPRINT, PROMPTS)
            detail(f"heads: making those of {', '.join(lacking)} in {path}")
            with stage(HEADS) as say:
                for task, head in make_heads(self.zoo, encoder, data, lacking):
                    heads[task], key = head, _FINGERPRINT + task
                    known |= {key: wanted[task], _KIND: self._kind, **self._wording(data, task)}
                    save_heads(heads, path, metadata=known)  # so that a stopped run keeps them
                say(f"{len(lacking)} tasks")

    def mark(self, task: str) -> str:
        """Return the fingerprint of a task's head, or the hash of its file if the user gave it."""
        file = head_file(self.files, task)
        return _kept(file, _FINGERPRINT).get(_FINGERPRINT + task) or file_hash(file)

    @property
    def _kind(self) -> str:
        """How the heads are made, in words."""
        zoo = self.zoo
        settings = {"class_means": zoo.head_scale, "linear_probe": "", "experts": zoo.head_scale}
        how: Any = settings.get(zoo.make_heads, zoo.text)
        kind = f"{zoo.make_heads} {how}".strip()
        if kind.startswith("zero_shot") and resolved(zoo.text.prompts, "zoo.text.prompts") != "own":
            kind += ", prompts of clip-benchmark"
        return kind

    def _wording(self, data: MergeDataModule, task: str) -> dict[str, str]:
        """Return the metadata entry that says whose prompts a zero-shot head has."""
        if self.zoo.make_heads != "zero_shot":
            return {}
        used = prompts(task, data.classes[task], self.zoo.text.prompts)
        return {PROMPTS + task: used.source}

    def made_from(
        self, encoder: Encoder, data: MergeDataModule, task: str, inputs: Mapping[str, str]
    ) -> str:
        """Return the fingerprint of the inputs of a task's head."""
        zoo, text = self.zoo, self.zoo.text
        made_from: list[Any] = [inputs["base"], inputs[task], zoo.make_heads, zoo.head_scale]
        made_from += [str(text), data.classes[task], encoder.features_of]
        if zoo.make_heads == "experts" and task in data.seen:
            made_from.append(file_hash(zoo.expert(task)))
        if zoo.make_heads == "zero_shot":
            used = prompts(task, data.classes[task], text.prompts)
            made_from.append((used.words, used.templates))
            made_from.append(text.weights and file_hash(text.weights))
        return fingerprint(made_from)


def describe_inputs(
    files: Iterable[str], heads: HeadFiles | None, data: MergeDataModule
) -> dict[str, str]:
    """Return what a run depends on besides options and images, by name; see `record`.

    A head that was made here counts by its fingerprint, so that heads of other tasks in its file
    change nothing; a file of heads that the user gave counts as a whole. What is out of domain has
    names of its own, as it is only measured.

    Args:
        files: The run's files; those of heads may be among them.
        heads: Files of the frozen heads, if there are any.
        data: The tasks.

    Examples:
        >>> import torch
        >>> from lightning_merge.core.checkpoints.checkpoint import save_checkpoint
        >>> weights, mark = {"weight": torch.ones(1)}, {"fingerprint/mnist": "ab"}
        >>> for name in ("base", "heads"):
        ...     _ = save_checkpoint(weights, f"{name}.safetensors", metadata=mark)
        >>> data = MergeDataModule(tasks=["mnist"])
        >>> found = describe_inputs(["base.safetensors"], "heads.safetensors", data)
        >>> [*found], found["head of mnist"]
        (['file base.safetensors', 'head of mnist'], 'ab')
    """
    if heads is None:
        return record.describe_files(files)
    own = set(head_files(heads, data.tasks))
    apart = _describe_heads(heads, data.out_of_domain)
    return {
        **record.describe_files(file for file in files if file not in own),
        **_describe_heads(heads, data.tasks),
        **{record.OUT_OF_DOMAIN_KEY + name: mark for name, mark in apart.items()},
    }


def _describe_heads(heads: HeadFiles, tasks: Sequence[str]) -> dict[str, str]:
    """Return the fingerprint of each head that was made here, and the hash of each other file."""
    found: dict[str, str] = {}
    for task in tasks:
        file = head_file(heads, task)
        if made := _kept(file, _FINGERPRINT).get(_FINGERPRINT + task):
            found[record.HEAD + task] = made
        elif f"file {file}" not in found:
            found |= record.describe_files([file])
    return found


def _lacking(heads: Path, wanted: Mapping[str, str]) -> list[str]:
    """Return the tasks whose head is not in the file or has another fingerprint."""
    known = _kept(heads, _FINGERPRINT) if heads.exists() else {}
    return [task for task, mark in wanted.items() if known.get(_FINGERPRINT + task) != mark]


def _kept(heads: str | Path, *prefixes: str) -> dict[str, str]:
    """Return the metadata under some prefixes; there are no fingerprints if not made here."""
    metadata = open_checkpoint(heads).metadata
    return {key: value for key, value in metadata.items() if key.startswith(prefixes)}
