"""Tasks and their images: sources, splits, the data module."""

from lightning_merge.data.augment import Augment
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.data.dataset import Batch
from lightning_merge.data.embedded import EmbeddedTasks
from lightning_merge.data.folders import ImageFolders
from lightning_merge.data.from_hub import HubData
from lightning_merge.data.from_torchvision import TorchvisionData
from lightning_merge.data.pool import ImagePool
from lightning_merge.data.tasks import TASKS, TaskSpec, task_spec

__all__ = [
    "TASKS",
    "Augment",
    "Batch",
    "EmbeddedTasks",
    "HubData",
    "ImageFolders",
    "ImagePool",
    "MergeDataModule",
    "TaskSpec",
    "TorchvisionData",
    "task_spec",
]
