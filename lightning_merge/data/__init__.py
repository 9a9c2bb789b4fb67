"""Tasks and their images: sources, splits, the data module."""

from lightning_merge.data.augment import Augment
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.data.dataset import Batch
from lightning_merge.data.folders import ImageFolders
from lightning_merge.data.pool import ImagePool

__all__ = ["Augment", "Batch", "ImageFolders", "ImagePool", "MergeDataModule"]
