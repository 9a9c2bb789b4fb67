"""One safetensors file of many small encoded images from several sources."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.data.examples import Examples, encoded_examples
from lightning_merge.data.source import Source


class ImagePool(Source):
    """A pool of images to pretrain on; each of its sources is a task that has only train images.

    The file holds `images` uint8 [bytes] (encoded images end to end), `offsets` int64 [n + 1],
    `labels` int16 [n] (numbered within the source) and `source` uint8 [n], an index into the
    comma-separated names of the metadata's `sources`.

    Args:
        root: The file.

    Raises:
        InputError: Root is not a pool.

    Examples:
        >>> from io import BytesIO
        >>> from PIL import Image
        >>> from safetensors.torch import save_file
        >>> file = BytesIO()
        >>> Image.new("RGB", (8, 4)).save(file, "PNG")
        >>> images = torch.tensor([*file.getvalue()], dtype=torch.uint8)
        >>> one = {"labels": torch.tensor([2]).short(), "source": torch.zeros(1, dtype=torch.uint8)}
        >>> one |= {"images": images, "offsets": torch.tensor([0, len(images)])}
        >>> save_file(one, "pool.safetensors", metadata={"sources": "birds"})
        >>> ImagePool("pool.safetensors").load("birds", "train").item(0).size
        (8, 4)
    """

    name = "pool"
    layout = "one .safetensors file of images"

    def __init__(self, root: str) -> None:
        super().__init__(root)
        if not Path(root).is_file():
            raise InputError(f"data.root={root!r} is not a file; give the pool's .safetensors file")
        pool = open_checkpoint(root)
        lacking = {"images", "offsets", "labels", "source"} - set(pool)
        if lacking or "sources" not in pool.metadata:
            raise InputError(
                f"data.root={root!r} is not a pool of images: it lacks "
                f"{', '.join(sorted(lacking)) or 'the names of its sources'}; give another file"
            )
        self.names = pool.metadata["sources"].split(",")
        self.images, self.offsets = pool["images"], pool["offsets"]
        self.labels, self.origin = pool["labels"].long(), pool["source"]

    def tasks(self) -> list[str]:
        """Return the names of the pool's sources."""
        return list(self.names)

    def offers(self, task: str, split: str) -> bool:
        """Whether the split is train."""
        return split == "train"

    def load(self, task: str, split: str) -> Examples:
        """Return the images of one source of the pool."""
        if task not in self.names:
            raise InputError(
                f"task {task!r} is not in the pool {self.root}; choose one of "
                f"{', '.join(self.names)}"
            )
        if split != "train":
            raise InputError(f"task {task!r}: the pool {self.root} has only train, not {split}")
        rows = torch.nonzero(self.origin == self.names.index(task)).flatten()
        if not len(rows):
            raise InputError(f"task {task!r} has no image in the pool {self.root}; leave it out")
        labels = self.labels[rows]
        return encoded_examples(
            classes=[str(c) for c in range(int(labels.max()) + 1)],
            labels=labels,
            read=partial(_encoded, self.images, self.offsets, rows),
            where=partial(_name, self.root, rows),
        )


def _encoded(images: Tensor, offsets: Tensor, rows: Tensor, i: int) -> bytes:
    start, stop = offsets[rows[i] : rows[i] + 2].tolist()
    return images[start:stop].numpy().tobytes()


def _name(root: str, rows: Tensor, i: int) -> str:
    return f"image {int(rows[i])} of {root}"
