"""Random changes of a batch, each image its own, on the batch's device."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augment:
    """Shift, scale, turn, mirror, recolour and erase, drawn anew for every image.

    torchvision's transforms draw once per call, so a batch would share its draw or cost one
    Python call per image; here one grid_sample serves the batch.

    Args:
        shift: largest shift, as a share of the side.
        scale: largest relative change of size.
        rotate: largest angle, in degrees.
        color: largest relative change of brightness, contrast and saturation.
        invert: probability of the negative of an image.
        erase: probability of a grey rectangle of up to half the side.
    """

    shift: float = 0.1
    scale: float = 0.15
    rotate: float = 10.0
    color: float = 0.2
    invert: float = 0.0
    erase: float = 0.0

    def __call__(self, images: Tensor, *, mirror: bool) -> Tensor:
        """Return changed copies.

        Args:
            images: uint8 [n, 3, s, s].
            mirror: also mirror half of the images.

        Returns:
            uint8 [n, 3, s, s].
        """
        x = self._move(images.float() / 255, mirror)
        x = self._recolor(x)
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
        n = len(x)

        def draw() -> Tensor:
            factor = 1 + (torch.rand(n, 1, 1, 1, device=x.device) * 2 - 1) * self.color
            return factor

        x = x * draw()
        mean = x.mean((1, 2, 3), keepdim=True)
        x = mean + (x - mean) * draw()
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * draw()
        if self.invert:
            negative = torch.rand(n, 1, 1, 1, device=x.device) < self.invert
            x = torch.where(negative, 1 - x, x)
        return x

    def _erase(self, x: Tensor) -> Tensor:
        n, _, _, side = x.shape
        chosen = torch.rand(n, 1, 1, device=x.device) < self.erase
        at = torch.arange(side, device=x.device)

        def band() -> Tensor:
            length = torch.rand(n, 1, device=x.device) * side / 2
            start = torch.rand(n, 1, device=x.device) * (side - length)
            return (at >= start) & (at < start + length)

        hole = band()[:, :, None] & band()[:, None, :] & chosen
        return torch.where(hole[:, None], torch.full_like(x, 0.5), x)
