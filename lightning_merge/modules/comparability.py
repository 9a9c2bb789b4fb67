"""What a reader must know before setting a table beside published ones."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.source import SourceFile, reading
from lightning_merge.core.checkpoints.unpickle import find_classes
from lightning_merge.data.tasks import task_spec
from lightning_merge.evaluation.candidates import Candidate
from lightning_merge.modules.heads import HeadFiles, wordings


@dataclass(frozen=True)
class Family:
    """Published CLIP experts that were trained together; families never share a column.

    Args:
        name: Its letter in docs/published.md.
        title: Who published it, in what form.
        remarks: Task of the table -> what a reader of its numbers must know.

    Examples:
        >>> FAMILIES["A"].title
        'the pickles of task_vectors'
    """

    name: str
    title: str
    remarks: Mapping[str, str] = field(default_factory=dict)


FAMILIES = {
    family.name: family
    for family in (
        Family("A", "the pickles of task_vectors"),
        Family("B", "the folders that tanganke published on the Hub"),
        Family(
            "C",
            "the state dicts of TALL, which TSV and Iso use, too",
            {
                "dtd": "its expert of this family was trained on images that include DTD's test "
                "images: 97.98 % on these, 78.55 % on held-out ones, by the publishers' record"
            },
        ),
    )
}
_HUB = re.compile(r"\bclip-vit-(base|large)-patch\d\d_[\w-]+")


def family_of(file: str | Path) -> Family | None:
    """Return the family of published experts that a checkpoint belongs to; None if unknown.

    The pickles of family A hold an object of class ImageEncoder; the others are known by the names
    that they have on the Hub, clip-vit-base-patch32_dtd and DTDVal/nonlinear_finetuned.pt.

    Args:
        file: An expert's file or folder, or its name on the Hub.

    Examples:
        >>> family_of("tanganke/clip-vit-base-patch32_dtd").name
        'B'
        >>> family_of("single_task/ViT-B-32/DTDVal/nonlinear_finetuned.pt").name
        'C'
    """
    if _HUB.search(str(file)):
        return FAMILIES["B"]
    path = Path(file)
    if path.name == "nonlinear_finetuned.pt" and path.parent.name.endswith("Val"):
        return FAMILIES["C"]
    named = hub.repository(file)
    if named is not None and named.file is not None:
        path = hub.local(file)
    if not path.is_file() or path.suffix in (".safetensors", ".json"):
        return None
    with reading(path):
        pickled = "ImageEncoder" in find_classes(SourceFile(path))
    return FAMILIES["A"] if pickled else None


def comparability(
    heads: HeadFiles, tasks: Sequence[str], experts: Candidate | None = None
) -> Iterator[str]:
    """Yield sentences for below a table: prompts, tasks of several kinds, families of experts.

    Args:
        heads: Files of heads.
        tasks: Columns of the table.
        experts: The candidate that tests every task by its own expert, if there is one.

    Examples:
        >>> import torch
        >>> from lightning_merge.models import class_mean_head, save_heads
        >>> head = class_mean_head(torch.eye(2), torch.arange(2), 2, classes=["cat", "dog"])
        >>> said = {"prompts/pets": "own wording"}
        >>> file = save_heads({"pets": head}, "heads.safetensors", metadata=said)
        >>> list(comparability("heads.safetensors", ["pets"]))
        ['Prompts of the zero-shot heads: own wording (pets).']
    """
    if used := wordings(heads, tasks):
        yield f"Prompts of the zero-shot heads: {_grouped(used)}."
    yield from (f"{task}: {task_spec(task).note}" for task in tasks if task_spec(task).note)
    given = experts.weights if experts is not None else {}
    files = given if isinstance(given, Mapping) else {}
    found = {task: family_of(files[task]) for task in tasks if task in files}
    families = {task: family for task, family in found.items() if family is not None}
    if families:
        kinds = {task: f"family {one.name}, {one.title}" for task, one in families.items()}
        yield f"Published experts: {_grouped(kinds)}."
    for task, family in families.items():
        if remark := family.remarks.get(task_spec(task).name):
            yield f"{task}: {remark}."


def _grouped(kinds: Mapping[str, str]) -> str:
    """Join kinds with the tasks of each."""
    tasks: defaultdict[str, list[str]] = defaultdict(list)
    for task, kind in kinds.items():
        tasks[kind].append(task)
    return "; ".join(f"{kind} ({', '.join(names)})" for kind, names in tasks.items())
