"""One safetensors file of many small encoded images from several sources."""

import io
from pathlib import Path

import torch
from PIL import Image

from lightning_merge.core.checkpoint import open_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.data.source import Examples, Source


class ImagePool(Source):
    """A pool to pretrain on; each source of the pool is a task with a train split only.

    The file holds `images` uint8 [bytes] (encoded images end to end), `offsets` int64 [n + 1],
    `labels` int16 [n] (numbered within the source) and `source` uint8 [n], an index into the
    comma-separated names of the metadata's `sources`.
    """

    name = "pool"

    def __init__(self, root: str) -> None:
        super().__init__(root)
        if not Path(root).is_file():
            raise InputError(f"data.root={root!r} is not a file; give the pool's .safetensors file")
        pool = open_checkpoint(root)
        self.names = pool.metadata["sources"].split(",")
        self.images, self.offsets = pool["images"], pool["offsets"].tolist()
        self.labels, self.source = pool["labels"].long(), pool["source"]

    def tasks(self) -> list[str]:
        """Return the names of the pool's sources."""
        return list(self.names)

    def load(self, task: str, split: str) -> Examples:
        """Return the images of one source of the pool."""
        if task not in self.names:
            raise InputError(f"task {task!r} is not in the pool {self.root}; it has {self.names}")
        if split != "train":
            raise InputError(f"the pool {self.root} has no {split} split, only train")
        rows = torch.nonzero(self.source == self.names.index(task)).flatten()
        labels = self.labels[rows]

        def content(i: int) -> bytes:
            row = int(rows[i])
            return self.images[self.offsets[row] : self.offsets[row + 1]].numpy().tobytes()

        return Examples(
            classes=tuple(str(c) for c in range(int(labels.max()) + 1)),
            labels=labels,
            image=lambda i: Image.open(io.BytesIO(content(i))).convert("RGB"),
            content=content,
        )
