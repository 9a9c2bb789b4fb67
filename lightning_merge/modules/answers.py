"""Right and wrong answers to every image of a pass, collected from all processes."""

import torch
from torch import Tensor

from lightning_merge.core.ranks import Ranks


class Answers:
    """Whether each image of a pass was classified correctly.

    Examples:
        >>> answers = Answers()
        >>> answers.add("pets", torch.tensor([2, 0]), torch.tensor([True, False]))
        >>> answers.add("pets", torch.tensor([1]), torch.tensor([True]))
        >>> answers.collect(Ranks())["pets"].tolist()
        [[False, True, True]]
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, task: str, index: Tensor, right: Tensor) -> None:
        """Add the answers to one batch.

        Args:
            task: Task of the images.
            index: Their positions in the part, int64 [n].
            right: Whether each was classified correctly, bool [n]; [rows, n] if several networks
                were asked, whose mean is the accuracy.
        """
        self._parts.setdefault(task, []).append((index, torch.atleast_2d(right)))

    def collect(self, ranks: Ranks) -> dict[str, Tensor]:
        """Return the answers of all processes, in the order of the images, and forget them.

        A pass that was cut short covers the first n images.

        Args:
            ranks: The processes, all of which call this.

        Returns:
            Task -> bool [rows, n].
        """
        own = {
            task: (
                torch.cat([i for i, _ in parts]).cpu(),
                torch.cat([r for _, r in parts], 1).cpu(),
            )
            for task, parts in self._parts.items()
        }
        self._parts = {}
        every, together = ranks.gather(own), {}
        for task in own:
            index, right = zip(*(found[task] for found in every), strict=True)
            together[task] = torch.cat(right, 1)[:, torch.cat(index).argsort()]
        return together
