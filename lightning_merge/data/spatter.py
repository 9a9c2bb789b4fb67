"""The corruption "spatter" of ImageNet-C: drops of water or mud on the lens."""

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

Array = NDArray[np.float64]

_WATER, _MUD = np.array([175, 238, 238]), np.array([63, 42, 20])
_LIGHT = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])  # from the upper left, on an embossed drop
_FAR = 20  # distance to the rim of a drop from which on it is flat
_WEAK, _STRONG = 50, 150  # thresholds of edges


def spatter(
    pixels: NDArray[np.uint8],
    constants: tuple[float, float, float, float, float, bool],
    rng: RandomState,
) -> Array:
    """Cover an image with drops, where smoothed noise is above a threshold.

    Mud hides what is below it; water brightens the image where a drop reflects light, which follows
    from the distance to its rim. Distances are exact where the authors' OpenCV approximates them.

    Args:
        pixels: The image [s, s, 3].
        constants: Mean and standard deviation of the noise, standard deviation of its smoothing in
            pixels, threshold, strength of water or smoothing of mud, and whether it is mud.
        rng: Source of the noise.

    Returns:
        Values on the scale 0 to 255, not yet clipped.

    Examples:
        >>> grey, rng = np.full((64, 64, 3), 100, np.uint8), RandomState(0)
        >>> wet = spatter(grey, (0.65, 0.3, 1, 0.69, 0.6, False), rng)
        >>> bool(wet.min() == 100), bool(wet.max() > 150)
        (True, True)
    """
    from scipy.ndimage import gaussian_filter

    mean, std, smoothing, threshold, strength, mud = constants
    liquid = gaussian_filter(rng.normal(mean, std, pixels.shape[:2]), smoothing, mode="nearest")
    liquid[liquid < threshold] = 0
    if not mud:
        return pixels + strength * _water(liquid)[..., None] * _WATER
    cover = gaussian_filter((liquid > threshold).astype(float), strength, mode="nearest")
    cover[cover < 0.8] = 0
    return pixels * (1 - cover[..., None]) + cover[..., None] * _MUD


def _water(liquid: Array) -> Array:
    """Return how much light each pixel reflects, [s, s] in [0, 1]."""
    from scipy.ndimage import correlate, distance_transform_edt, uniform_filter

    layer = np.clip(255 * liquid, 0, 255).astype(np.uint8).astype(float)
    rim = edges(layer)
    height = np.full(layer.shape, float(_FAR))
    if rim.any():
        height = np.minimum(distance_transform_edt(~rim), _FAR)
    height = equalized(np.floor(uniform_filter(height, 3, mode="mirror")).astype(int))
    light = np.clip(correlate(height, _LIGHT, mode="mirror"), 0, 255)
    drops = layer * np.rint(uniform_filter(light.astype(float), 3, mode="mirror"))
    return drops / max(drops.max(), 1)


def edges(layer: Array) -> NDArray[np.bool_]:
    """Find edges by Canny's algorithm, with Sobel's derivatives and the sum of their sizes.

    Args:
        layer: Grey values on the scale 0 to 255, [s, s].

    Examples:
        >>> step = np.zeros((5, 6))
        >>> step[:, 3:] = 100
        >>> edges(step)[2]
        array([False, False,  True, False, False, False])
    """
    from scipy.ndimage import label, sobel

    dx, dy = (sobel(layer, axis, mode="nearest") for axis in (1, 0))
    size = abs(dx) + abs(dy)
    around = np.pad(size, 1)

    def beside(down: int, right: int) -> Array:
        height, width = size.shape
        return around[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    flat, steep = (abs(dy) < abs(dx) * np.tan(np.pi / 8)), (abs(dy) > abs(dx) / np.tan(np.pi / 8))
    falling = dx * dy < 0
    is_peak = np.select(
        [flat, steep, falling],
        [
            (size > beside(0, -1)) & (size >= beside(0, 1)),
            (size > beside(-1, 0)) & (size >= beside(1, 0)),
            (size > beside(-1, 1)) & (size > beside(1, -1)),
        ],
        (size > beside(-1, -1)) & (size > beside(1, 1)),
    )
    parts, _ = label(is_peak & (size > _WEAK), np.ones((3, 3)))
    return np.isin(parts, np.unique(parts[is_peak & (size > _STRONG)]))


def equalized(values: NDArray[np.int_]) -> NDArray[np.int_]:
    """Spread values evenly over 0 to 255 by their ranks; equal values stay equal.

    Args:
        values: Numbers from 0 to 255, of any shape.

    Examples:
        >>> equalized(np.array([3, 3, 4, 9]))
        array([  0,   0, 128, 255])
    """
    counts = np.bincount(values.ravel(), minlength=256)
    lowest = counts[values.min()]
    if lowest == values.size:
        return values
    below = np.clip(np.cumsum(counts) - lowest, 0, None)
    return np.rint(below * 255 / (values.size - lowest)).astype(int)[values]
