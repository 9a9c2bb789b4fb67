"""Small pictures to draw on: coordinates, random numbers, colours and strokes."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Canvas:
    """Empty square pictures with their own random numbers.

    Args:
        rng: Source of every random choice.
        count: Number of pictures, n.
        size: Side of a picture in pixels, s.

    Attributes:
        x: Horizontal coordinate of every pixel centre, [1, s, s] in (-1, 1), to the right.
        y: Vertical coordinate, [1, s, s] in (-1, 1), downwards.

    Examples:
        >>> canvas = Canvas(np.random.RandomState(0), count=2, size=4)
        >>> canvas.x[0, 0]
        array([-0.75, -0.25,  0.25,  0.75])
        >>> canvas.paint(canvas.cover(canvas.x)).shape
        (2, 3, 4, 4)
    """

    def __init__(self, rng: np.random.RandomState, count: int, size: int) -> None:
        self.rng, self.count, self.size = rng, count, size
        centres = (np.arange(size) + 0.5) * 2 / size - 1
        self.y, self.x = (axis[None] for axis in np.meshgrid(centres, centres, indexing="ij"))

    def uniform(self, low: float, high: float, *shape: int) -> Array:
        """Sample uniform numbers [n, *shape]; [n, 1, 1] by default, one for each picture."""
        return self.rng.uniform(low, high, (self.count, *(shape or (1, 1))))

    def frame(
        self, *, turn: float, scale: tuple[float, float], shift: float
    ) -> tuple[Array, Array]:
        """Return coordinates x, y [n, s, s], randomly turned (radians), scaled and shifted."""
        angle, factor = self.uniform(-turn, turn), self.uniform(*scale)
        x, y = self.x - self.uniform(-shift, shift), self.y - self.uniform(-shift, shift)
        cos, sin = np.cos(angle) / factor, np.sin(angle) / factor
        return cos * x + sin * y, cos * y - sin * x

    def cover(self, distance: Array) -> Array:
        """Turn signed distances [n, s, s] to a figure's edge into the share of a pixel inside."""
        return np.clip(0.5 - distance * self.size / 3, 0, 1)

    def paint(self, mask: Array, *, dark_ink: float = 0.5, noise: float = 0.08) -> Array:
        """Lay ink of one random colour on paper of another: [n, s, s] to [n, 3, s, s].

        Ink and paper differ in brightness; the ink is darker with probability `dark_ink`.
        """
        dark = hsv(self.uniform(0, 1, 1), self.uniform(0.2, 1, 1), self.uniform(0.1, 0.4, 1))
        light = hsv(self.uniform(0, 1, 1), self.uniform(0, 0.6, 1), self.uniform(0.7, 1, 1))
        swap = self.uniform(0, 1, 1, 1) < dark_ink
        ink, paper = np.where(swap, dark, light), np.where(swap, light, dark)
        picture = paper[..., None] + mask[:, None] * (ink - paper)[..., None]
        return self.grain(picture, noise)

    def grain(self, picture: Array, noise: float) -> Array:
        """Add uniform noise of amplitude `noise` to every value of [n, 3, s, s]."""
        return picture + self.rng.uniform(-noise, noise, picture.shape)


def hsv(hue: Array, saturation: Array, value: Array) -> Array:
    """Convert hue (in turns), saturation and value, each [n, m], to RGB [n, 3, m] in [0, 1].

    Examples:
        >>> hsv(np.array([[1 / 3]]), np.ones((1, 1)), np.ones((1, 1))).ravel()
        array([0., 1., 0.])
    """
    sector = (np.array([5.0, 3.0, 1.0])[None, :, None] + 6 * hue[:, None]) % 6
    ramp = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return value[:, None] * (1 - saturation[:, None] * ramp)


def stroke_distance(x: Array, y: Array, start: Array, end: Array) -> Array:
    """Return the distance [n, s, s] of every pixel to a stroke.

    Args:
        x: Horizontal coordinates [n, s, s].
        y: Vertical coordinates [n, s, s].
        start: Where each stroke starts, [n or 1, 2].
        end: Where it ends, [n or 1, 2].

    Examples:
        >>> x, y = np.array([[[3.0]]]), np.array([[[4.0]]])
        >>> stroke_distance(x, y, np.array([[-1.0, 0.0]]), np.array([[0.0, 0.0]])).item()
        5.0
    """
    (x0, y0), (x1, y1) = (point.T[..., None, None] for point in (start, end))
    dx, dy = x1 - x0, y1 - y0
    along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx**2 + dy**2 + 1e-9), 0, 1)
    return np.hypot(x - x0 - along * dx, y - y0 - along * dy)
