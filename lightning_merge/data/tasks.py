"""The task table: one row per task; nothing else in the code knows a task by name."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from lightning_merge.core.checkpoints.names import composed
from lightning_merge.core.errors import InputError
from lightning_merge.data import vision8, vision20
from lightning_merge.data.spec import TaskSpec
from lightning_merge.data.text import choices, pairs, sentences

__all__ = ["GROUPS", "TASKS", "TaskSpec", "expand_tasks", "task_spec"]

_ROWS = (*vision8.ROWS, *vision20.ROWS, *sentences.ROWS, *pairs.ROWS, *choices.ROWS)
TASKS: Mapping[str, TaskSpec] = MappingProxyType({row.name: row for row in _ROWS})
_BY_ANY_NAME = {name: row for row in _ROWS for name in (row.name, *row.aliases)}

_8 = tuple(row.name for row in vision8.ROWS)
_14 = (*_8, "flowers102", "pcam", "fer2013", "oxford_pets", "stl10", "cifar100")
_20 = (*_14, "cifar10", "food101", "fashion_mnist", "emnist_digits", "kmnist", "rendered_sst2")
_ANLI = ("anli_r1", "anli_r2", "anli_r3")
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "vision8": _8,
        "vision14": _14,
        "vision20": _20,
        "vision20_letters": tuple({"emnist_digits": "emnist_letters"}.get(n, n) for n in _20),
        "lwptv_ood": (*_20[len(_8) :], "imagenet"),
        "text8": ("sst2", "trec", "cr", "mpqa", "subj", "mrpc", "wikiqa", "emotion"),
        "glue8": ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"),
        "t5_7": ("paws", "qasc", "quartz", "story_cloze", "wikiqa", "winogrande", "wsc_fixed"),
        "t5_ood": (*("rte", "cb", "wic", "copa", "hellaswag"), *_ANLI),
    }
)
"""Names for several tasks, in the order of FusionBench's tables; TALL's EMNIST has digits, its own
has letters. `lwptv_ood` has the out-of-domain sets of LwPTV, appendix B.3. Of text: `text8` is the
suite's, `glue8` has FusionBench's tasks of flan-T5, `t5_7` and `t5_ood` those of LwPTV and
StatsMerging."""


def task_spec(name: str) -> TaskSpec:
    """Return the row of a task; a user's own task has a row of defaults.

    Examples:
        >>> task_spec("stanford-cars").name, task_spec("pets").templates
        ('cars', ('a photo of a {}.',))
    """
    return _BY_ANY_NAME.get(name, TaskSpec(name))


def expand_tasks(names: str | Sequence[str], option: str = "data.tasks") -> tuple[str, ...]:
    """Return the names of tasks in NFC, with the names of groups replaced by their tasks.

    Args:
        names: A group, or names of tasks and groups.
        option: What to call them in messages.

    Raises:
        InputError: A single name is not that of a group.

    Examples:
        >>> expand_tasks(["vision8", "pets"])[-3:]
        ('mnist', 'dtd', 'pets')
        >>> len(expand_tasks("vision20"))
        20
    """
    if isinstance(names, str):
        if names not in GROUPS:
            raise InputError(
                f"{option}={names!r} is not a group of tasks; give one of {', '.join(GROUPS)}, or "
                f"a list: [{names}]"
            )
        return GROUPS[names]
    expanded = (GROUPS.get(name, (name,)) for name in map(composed, names))
    return tuple(task for tasks in expanded for task in tasks)
