"""The interface of preprocessing: from an example to a network's input."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor


class Preprocess(ABC):
    """What happens to an example before the first layer of an encoder.

    It has two steps: `transform` makes a tensor of a fixed shape from an example once, in the data
    loader, and `finish` turns batches of them into the network's input, on its device. Instances
    are frozen dataclasses: equal ones share what `transform` made.

    Attributes:
        kind: What the examples are: "images" or "texts".
        dtype: Data type of a transformed example.

    Examples:
        >>> from lightning_merge.models import ImagePreprocess
        >>> images = ImagePreprocess(size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> images.kind, images.dtype, images.shape()
        ('images', torch.uint8, (3, 4, 4))
    """

    kind: ClassVar[str]
    dtype: ClassVar[torch.dtype]

    @abstractmethod
    def shape(self, parts: int = 1, answers: int = 0) -> tuple[int, ...]:
        """Return the shape of a transformed example.

        Args:
            parts: Number of texts that an example has; 1 for images.
            answers: Number of answers between which a network that writes them chooses.

        Raises:
            InputError: The encoder takes no such examples.
        """

    @abstractmethod
    def transform(self) -> Callable[[Any], Tensor]:
        """Build the function from an example to a tensor of that shape and data type."""

    @abstractmethod
    def finish(self, batch: Tensor) -> Tensor:
        """Turn transformed examples [n, ...] into the network's input, on the same device."""

    def trim(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """Return batches [n, ...] without the padding that no example in any of them needs."""
        return batches

    def remark(self, transforms: Mapping[str, Any]) -> str:
        """Return what a user should know of the examples that were transformed, "" if nothing.

        Args:
            transforms: Name of a part of the data -> the function of `transform` that has seen it.
        """
        return ""
