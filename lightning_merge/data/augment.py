"""Random augmentation of every image of a batch, on the batch's device."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_merge.core.checks import require_in
from lightning_merge.core.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Draws:
    """Uniform random numbers in [0, 1) for every image of a step.

    Every process samples the numbers for the images of all processes on the CPU and takes its
    share. So the images of several processes are changed as a single process would change them.

    Args:
        generator: Generator of the step; torch's default one if None.
        ranks: Processes that share the step.

    Examples:
        >>> alone = Draws(torch.Generator().manual_seed(0))(torch.zeros(2, 3, 8, 8))
        >>> second = Draws(torch.Generator().manual_seed(0), Ranks(1, 2))(torch.zeros(1, 3, 8, 8))
        >>> bool(second == alone[1])
        True
    """

    generator: torch.Generator | None = None
    ranks: Ranks = ALONE

    def __call__(self, like: Tensor, *shape: int) -> Tensor:
        """Return numbers [n, *shape] for n images, on their device."""
        rank, size, n = *self.ranks, len(like)
        numbers = torch.rand(size * n, *shape, generator=self.generator)
        return numbers[rank * n : (rank + 1) * n].to(like.device)


UNSEEDED = Draws()


@dataclass(frozen=True)
class Augment:
    """Random shift, scaling, rotation, mirroring, recolouring and erasing of every image.

    A torchvision transform samples once per call, so a batch would share one sample or cost one
    Python call per image. Here one grid_sample serves the batch.

    Args:
        shift: Largest shift, as a share of the side, in [0, 1].
        scale: Largest relative change of size, in [0, 1).
        rotate: Largest angle, in degrees, at least 0.
        color: Largest relative change of brightness, contrast and saturation, in [0, 1].
        invert: Probability of inverting an image, in [0, 1].
        erase: Probability of a grey rectangle of up to half the side, in [0, 1].

    Raises:
        InputError: A value is out of range.

    Examples:
        >>> negative = Augment(shift=0, scale=0, rotate=0, color=0, invert=1)
        >>> negative(torch.full((1, 3, 1, 1), 250, dtype=torch.uint8), mirror=False).flatten()
        tensor([5, 5, 5], dtype=torch.uint8)
    """

    shift: float = 0.1
    scale: float = 0.15
    rotate: float = 10.0
    color: float = 0.2
    invert: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        chances = {"color": self.color, "invert": self.invert, "erase": self.erase}
        require_in("[0, 1]", "augment.", shift=self.shift, **chances)
        require_in("[0, 1)", "augment.", scale=self.scale)
        require_in("[0, inf)", "augment.", rotate=self.rotate)

    def __call__(self, images: Tensor, *, mirror: bool, draws: Draws = UNSEEDED) -> Tensor:
        """Return changed copies.

        Args:
            images: Pixels, uint8 [n, 3, s, s].
            mirror: Also mirror an image with probability 1/2.
            draws: Random numbers.

        Returns:
            Pixels, uint8 [n, 3, s, s].
        """
        x = images.float() / 255
        if mirror or self.shift or self.scale or self.rotate:
            x = self._move(x, mirror, draws)
        if self.color:
            x = self._recolor(x, draws)
        if self.invert:
            x = torch.where(draws(x, 1, 1, 1) < self.invert, 1 - x, x)
        if self.erase:
            x = self._erase(x, draws)
        return (x.clamp(0, 1) * 255).round().to(torch.uint8)

    def _move(self, x: Tensor, mirror: bool, draws: Draws) -> Tensor:
        def draw(limit: float) -> Tensor:
            return (draws(x) * 2 - 1) * limit

        angle, size = torch.deg2rad(draw(self.rotate)), 1 + draw(self.scale)
        flip = torch.where(draws(x) < 0.5, -1.0, 1.0) if mirror else 1.0
        cos, sin = angle.cos() * size, angle.sin() * size
        rows = [cos * flip, -sin, draw(2 * self.shift), sin * flip, cos, draw(2 * self.shift)]
        grid = F.affine_grid(torch.stack(rows, 1).view(len(x), 2, 3), list(x.shape), False)
        return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    def _recolor(self, x: Tensor, draws: Draws) -> Tensor:
        def draw() -> Tensor:
            return 1 + (draws(x, 1, 1, 1) * 2 - 1) * self.color

        x = x * draw()
        mean = x.mean((1, 2, 3), keepdim=True)
        x = mean + (x - mean) * draw()
        grey = x.mean(1, keepdim=True)
        return grey + (x - grey) * draw()

    def _erase(self, x: Tensor, draws: Draws) -> Tensor:
        side = x.shape[-1]
        at = torch.arange(side, device=x.device)

        def band() -> Tensor:
            length = draws(x, 1) * side / 2
            start = draws(x, 1) * (side - length)
            return (at >= start) & (at < start + length)

        hole = (band()[:, :, None] & band()[:, None, :])[:, None]
        chosen = draws(x, 1, 1, 1) < self.erase
        return torch.where(hole & chosen, torch.full_like(x, 0.5), x)
