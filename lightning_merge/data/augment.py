"""Random changes of a batch, each image its own, on the batch's device."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_merge.core.errors import InputError


@dataclass(frozen=True)
class Augment:
    """Shift, scale, turn, mirror, recolour and erase, drawn anew for every image.

    torchvision's transforms draw once per call, so a batch would share its draw or cost one
    Python call per image; here one grid_sample serves the batch.

    Args:
        shift: largest shift, as a share of the side, in [0, 1].
        scale: largest relative change of size, in [0, 1).
        rotate: largest angle, in degrees, at least 0.
        color: largest relative change of brightness, contrast and saturation, in [0, 1].
        invert: probability of the negative of an image.
        erase: probability of a grey rectangle of up to half the side.

    Raises:
        InputError: a value is out of range.
    """

    shift: float = 0.1
    scale: float = 0.15
    rotate: float = 10.0
    color: float = 0.2
    invert: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shift", "scale", "color", "invert", "erase"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name == "scale" and value == 1):
                raise InputError(f"augment.{name}={value} must lie in [0, 1]; 0 turns it off")
        if self.rotate < 0:
            raise InputError(f"augment.rotate={self.rotate}: give degrees, at least 0")

    def __call__(self, images: Tensor, *, mirror: bool) -> Tensor:
        """Return changed copies.

        Args:
            images: uint8 [n, 3, s, s].
            mirror: also mirror half of the images.

        Returns:
            uint8 [n, 3, s, s].
        """
        x = images.float() / 255
        if mirror or self.shift or self.scale or self.rotate:
            x = self._move(x, mirror)
        if self.color:
            x = self._recolor(x)
        if self.invert:
            x = torch.where(_chance(x, self.invert), 1 - x, x)
        if self.erase:
            x = self._erase(x)
        return (x.clamp(0, 1) * 255).round().to(torch.uint8)

    def _move(self, x: Tensor, mirror: bool) -> Tensor:
        n = len(x)

        def draw(limit: float) -> Tensor:
            return (torch.rand(n, device=x.device) * 2 - 1) * limit

        angle, size = torch.deg2rad(draw(self.rotate)), 1 + draw(self.scale)
        flip = torch.where(torch.rand(n, device=x.device) < 0.5, -1.0, 1.0) if mirror else 1.0
        cos, sin = angle.cos() * size, angle.sin() * size
        rows = [cos * flip, -sin, draw(2 * self.shift), sin * flip, cos, draw(2 * self.shift)]
        grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(x.shape), False)
        return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    def _recolor(self, x: Tensor) -> Tensor:
        def draw() -> Tensor:
            return 1 + (torch.rand(len(x), 1, 1, 1, device=x.device) * 2 - 1) * self.color

        x = x * draw()
        mean = x.mean((1, 2, 3), keepdim=True)
        x = mean + (x - mean) * draw()
        grey = x.mean(1, keepdim=True)
        return grey + (x - grey) * draw()

    def _erase(self, x: Tensor) -> Tensor:
        n, _, _, side = x.shape
        at = torch.arange(side, device=x.device)

        def band() -> Tensor:
            length = torch.rand(n, 1, device=x.device) * side / 2
            start = torch.rand(n, 1, device=x.device) * (side - length)
            return (at >= start) & (at < start + length)

        hole = (band()[:, :, None] & band()[:, None, :])[:, None]
        return torch.where(hole & _chance(x, self.erase), torch.full_like(x, 0.5), x)


def _chance(x: Tensor, probability: float) -> Tensor:
    """Choose images of [n, 3, s, s], as bool [n, 1, 1, 1]."""
    return torch.rand(len(x), 1, 1, 1, device=x.device) < probability
