"""Tasks and their images: sources, splits, the data module.

What is imported from here comes with its own module alone: the table of tasks needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_merge.data.augment import Augment
    from lightning_merge.data.corrupt import Corruption
    from lightning_merge.data.datamodule import MergeDataModule
    from lightning_merge.data.dataset import Batch
    from lightning_merge.data.embedded import EmbeddedTasks
    from lightning_merge.data.folders import ImageFolders
    from lightning_merge.data.from_hub import HubData
    from lightning_merge.data.from_torchvision import TorchvisionData
    from lightning_merge.data.pool import ImagePool
    from lightning_merge.data.tasks import GROUPS, TASKS, TaskSpec, expand_tasks, task_spec
    from lightning_merge.data.text_tables import TextTables

__all__ = [
    "GROUPS",
    "TASKS",
    "Augment",
    "Batch",
    "Corruption",
    "EmbeddedTasks",
    "HubData",
    "ImageFolders",
    "ImagePool",
    "MergeDataModule",
    "TaskSpec",
    "TextTables",
    "TorchvisionData",
    "expand_tasks",
    "task_spec",
]

_MODULES = {
    "GROUPS": "tasks",
    "TASKS": "tasks",
    "Augment": "augment",
    "Batch": "dataset",
    "Corruption": "corrupt",
    "EmbeddedTasks": "embedded",
    "HubData": "from_hub",
    "ImageFolders": "folders",
    "ImagePool": "pool",
    "MergeDataModule": "datamodule",
    "TaskSpec": "tasks",
    "TextTables": "text_tables",
    "TorchvisionData": "from_torchvision",
    "expand_tasks": "tasks",
    "task_spec": "tasks",
}


if not TYPE_CHECKING:  # for which an unknown name is an error

    def __getattr__(name: str) -> Any:
        """Import a name of `__all__` when it is first asked for."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
