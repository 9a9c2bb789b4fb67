"""The task table: one row per task, names and prompts; nothing else knows the tasks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskSpec:
    """What is known of a task beside its images.

    Args:
        name: the task's name in configs, folders and tables.
        mirror: a mirrored image keeps its class (false for digits and traffic signs).
        obtain: one sentence that says how to get the data.
    """

    name: str
    mirror: bool = False
    obtain: str = "Put images into <data.root>/<task>/{train,test}/<class>/"


TASKS: dict[str, TaskSpec] = {
    n: TaskSpec(n, mirror=True) for n in ("cars", "cifar10", "eurosat", "resisc")
}


def task_spec(name: str) -> TaskSpec:
    """Return the row of a task; a user's own task has a row of defaults."""
    return TASKS.get(name, TaskSpec(name))
