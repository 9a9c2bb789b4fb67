"""Common corruptions of test images, at the size of the network's input.

Names, formulas and constants are those of Hendrycks and Dietterich, Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations, ICLR 2019, section 4.1 and the authors' scripts.
They published a set of constants for each of three sizes, because the same blur or block takes more
from a small image: CIFAR-10-C (32 px), Tiny ImageNet-C (64 px) and ImageNet-C (224 px). Here the
constants are those of the closest size, by ratio. Images are not compressed afterwards, as
those of ImageNet-C were (JPEG, quality 85).
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_merge.core.checks import require_choice
from lightning_merge.core.errors import InputError
from lightning_merge.core.seeding import generator_for
from lightning_merge.data.spatter import spatter

Pixels = NDArray[np.uint8]
"""An image [s, s, 3]."""
Values = NDArray[np.float64]
"""Numbers of such an image on the scale 0 to 255, which may lie outside of it."""

SIGMA = "gaussian_sigma"
"""Gaussian noise whose severity is its standard deviation on the scale 0 to 255."""


def gaussian_noise(pixels: Pixels, scale: float, rng: RandomState) -> Values:
    """Add noise N(0, scale^2) to every value, on the scale 0 to 1.

    Examples:
        >>> gaussian_noise(np.full((1, 1, 3), 51, np.uint8), 0.0, RandomState(0))
        array([[[51., 51., 51.]]])
    """
    return pixels + 255 * rng.normal(0, scale, pixels.shape)


def impulse_noise(pixels: Pixels, amount: float, rng: RandomState) -> Values:
    """Replace a share of the values by 0 or 255, equally often (salt and pepper).

    Examples:
        >>> noisy = impulse_noise(np.full((9, 9, 3), 51, np.uint8), 0.5, RandomState(0))
        >>> np.unique(noisy)
        array([  0.,  51., 255.])
    """
    hit = rng.uniform(size=pixels.shape) < amount
    return np.where(hit, 255.0 * (rng.uniform(size=pixels.shape) < 0.5), pixels)


def motion_blur(pixels: Pixels, extent: tuple[int, float], rng: RandomState) -> Values:
    """Blur along a line of random angle in [-45, 45] degrees, as ImageMagick does.

    out(y, x) = sum_i k_i in(y + i sin a, x + i cos a) for i = 0 ... 2 r, with k_i proportional to
    exp(-i^2 / (2 s^2)); positions are rounded, halves down, and clamped to the image.

    Args:
        pixels: The image.
        extent: Radius r and standard deviation s of the kernel, in pixels.
        rng: Source of the angle.

    Examples:
        >>> float(motion_blur(np.full((2, 2, 3), 7, np.uint8), (3, 1.0), RandomState(0)).max())
        7.0
    """
    radius, sigma = extent
    angle = math.radians(rng.uniform(-45, 45))
    steps = np.arange(2 * radius + 1)
    kernel = np.exp(-(steps**2) / (2 * sigma**2))
    down, right = (np.ceil(steps * f(angle) - 0.5).astype(int) for f in (math.sin, math.cos))
    y, x = (np.arange(side) for side in pixels.shape[:2])
    blurred = np.zeros(pixels.shape)
    for weight, dy, dx in zip(kernel / kernel.sum(), down, right, strict=True):
        rows, columns = np.clip(y + dy, 0, y[-1]), np.clip(x + dx, 0, x[-1])
        blurred += weight * pixels[rows[:, None], columns]
    return np.rint(blurred)


def contrast(pixels: Pixels, factor: float, rng: RandomState) -> Values:
    """Move every value towards the mean m of its channel: m + factor (value - m).

    Examples:
        >>> contrast(np.array([[[0] * 3, [100] * 3]], np.uint8), 0.5, RandomState(0))[0, :, 0]
        array([25., 75.])
    """
    mean = pixels.mean((0, 1), keepdims=True)
    return mean + factor * (pixels - mean)


def jpeg_compression(pixels: Pixels, quality: int, rng: RandomState) -> Values:
    """Compress as a JPEG of some quality, with 4:2:0 subsampling, and decode.

    Examples:
        >>> int(jpeg_compression(np.full((8, 8, 3), 128, np.uint8), 10, RandomState(0)).max())
        128
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).astype(float)


def pixelate(pixels: Pixels, factor: float, rng: RandomState) -> Values:
    """Shrink the image by a factor and enlarge it again, both by averaging areas.

    Examples:
        >>> pixelate(np.array([[[0] * 3, [100] * 3]] * 2, np.uint8), 0.5, RandomState(0))[0, :, 0]
        array([50., 50.])
    """
    height, width = pixels.shape[:2]
    small = (max(1, int(width * factor)), max(1, int(height * factor)))
    image = Image.fromarray(pixels).resize(small, Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.BOX)).astype(float)


CORRUPTIONS: dict[str, Callable[[Pixels, Any, RandomState], Values]] = {
    "gaussian_noise": gaussian_noise,
    "motion_blur": motion_blur,
    "impulse_noise": impulse_noise,
    "contrast": contrast,
    "jpeg_compression": jpeg_compression,
    "pixelate": pixelate,
    "spatter": spatter,
}
"""Name -> function of an image, a constant and random numbers."""

CONSTANTS: dict[int, tuple[str, dict[str, list[Any]]]] = {
    32: (
        "CIFAR-10-C",
        {
            "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],
            "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
            "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
            "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
            "jpeg_compression": [80, 65, 58, 50, 40],
            "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],
            "spatter": [
                (0.62, 0.1, 0.7, 0.7, 0.5, False),
                (0.65, 0.1, 0.8, 0.7, 0.5, False),
                (0.65, 0.3, 1, 0.69, 0.5, False),
                (0.65, 0.1, 0.7, 0.69, 0.6, True),
                (0.65, 0.1, 0.5, 0.68, 0.6, True),
            ],
        },
    ),
    64: (
        "Tiny ImageNet-C",
        {
            "gaussian_noise": [0.04, 0.08, 0.12, 0.15, 0.18],
            "motion_blur": [(10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)],
            "impulse_noise": [0.01, 0.02, 0.05, 0.08, 0.14],
            "contrast": [0.4, 0.3, 0.2, 0.1, 0.05],
            "jpeg_compression": [65, 58, 50, 40, 25],
            "pixelate": [0.9, 0.8, 0.7, 0.6, 0.5],
            "spatter": [
                (0.62, 0.1, 0.7, 0.7, 0.6, False),
                (0.65, 0.1, 0.8, 0.7, 0.6, False),
                (0.65, 0.3, 1, 0.69, 0.6, False),
                (0.65, 0.1, 0.7, 0.68, 0.6, True),
                (0.65, 0.1, 0.5, 0.67, 0.6, True),
            ],
        },
    ),
    224: (
        "ImageNet-C",
        {
            "gaussian_noise": [0.08, 0.12, 0.18, 0.26, 0.38],
            "motion_blur": [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
            "impulse_noise": [0.03, 0.06, 0.09, 0.17, 0.27],
            "contrast": [0.4, 0.3, 0.2, 0.1, 0.05],
            "jpeg_compression": [25, 18, 15, 10, 7],
            "pixelate": [0.6, 0.5, 0.4, 0.3, 0.25],
            "spatter": [
                (0.65, 0.3, 4, 0.69, 0.6, False),
                (0.65, 0.3, 3, 0.68, 0.6, False),
                (0.65, 0.3, 2, 0.68, 0.5, False),
                (0.65, 0.3, 1, 0.65, 1.5, True),
                (0.67, 0.4, 1, 0.65, 1.5, True),
            ],
        },
    ),
}
"""Side of the images -> the name of a benchmark, and its constants of severity 1 to 5."""


@dataclass(frozen=True)
class Corruption:
    """What is done to every test image.

    Args:
        name: One of gaussian_noise, motion_blur, impulse_noise, contrast, jpeg_compression,
            pixelate, spatter and gaussian_sigma.
        severity: 1 to 5, with the published constants for the closest image size (CIFAR-10-C,
            Tiny ImageNet-C or ImageNet-C). For gaussian_sigma the standard deviation of the noise
            on the scale 0 to 255, such as StatsMerging's 10, 15 and 20 (table 11).

    Raises:
        InputError: The name or the severity is unknown.

    Examples:
        >>> image = torch.full((3, 32, 32), 100, dtype=torch.uint8)
        >>> noisy = Corruption("gaussian_sigma", 20).apply(image, ["cars", "image 0"])
        >>> round(noisy.float().std().item())
        20
    """

    name: str
    severity: int

    def __post_init__(self) -> None:
        require_choice([*CORRUPTIONS, SIGMA], "data.corruption.", name=self.name)
        last, choices = 5, "1, 2, 3, 4 or 5"
        if self.name == SIGMA:
            last, choices = 255, "a standard deviation from 1 to 255, a whole number"
        if type(self.severity) is not int or not 1 <= self.severity <= last:
            raise InputError(
                f"data.corruption.severity={self.severity!r}: {self.name} takes {choices}"
            )

    @classmethod
    def of(cls, given: Any) -> "Corruption | None":
        """Return the corruption that an option gives: an object, its fields as a mapping, or None.

        Raises:
            InputError: A field is missing or unknown.

        Examples:
            >>> Corruption.of({"name": "contrast", "severity": 2})
            Corruption(name='contrast', severity=2)
        """
        if not isinstance(given, Mapping):
            return given  # type: ignore[no-any-return]
        if set(given) != {"name", "severity"}:
            raise InputError(f"data.corruption={dict(given)!r}: give name and severity")
        return cls(**given)

    def apply(self, image: Tensor, names: Iterable[str]) -> Tensor:
        """Corrupt one image.

        Args:
            image: Its pixels, uint8 [3, s, s].
            names: What the random numbers belong to, besides the corruption; all severities share
                them.

        Returns:
            uint8 [3, s, s].
        """
        seed = generator_for(0, self.name, *names).initial_seed() % 2**32
        pixels, rng = image.permute(1, 2, 0).numpy(), RandomState(seed)
        if self.name == SIGMA:
            values = np.rint(gaussian_noise(pixels, self.severity / 255, rng))
        else:
            constant = _closest(pixels.shape[0])[1][self.name][self.severity - 1]
            values = CORRUPTIONS[self.name](pixels, constant, rng)
        corrupted = np.clip(values, 0, 255).astype(np.uint8)  # cut to whole numbers, as published
        return torch.from_numpy(np.ascontiguousarray(corrupted.transpose(2, 0, 1)))

    def note(self, size: int) -> str:
        """Return the sentence of a table that says what was measured.

        Args:
            size: Side of the images in pixels.

        Examples:
            >>> Corruption("motion_blur", 3).note(64)
            'Test images are corrupted: motion_blur of severity 3 (constants of Tiny ImageNet-C, ...
        """
        if self.name == SIGMA:
            what = f"Gaussian noise of standard deviation {self.severity} on the scale 0 to 255 ("
        else:
            what = f"{self.name} of severity {self.severity} (constants of {_closest(size)[0]}, "
        return (
            f"Test images are corrupted: {what}at {size} x {size} px). Held-out images are clean."
        )


def _closest(size: int) -> tuple[str, dict[str, list[Any]]]:
    """Return the name and the constants of the benchmark whose images are closest in size."""
    return CONSTANTS[min(CONSTANTS, key=lambda published: abs(math.log(size / published)))]
