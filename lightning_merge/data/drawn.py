"""The embedded tasks of the quickstart: scikit-learn's handwritten digits and seven drawn tasks.

Nothing is downloaded. Every image follows from (task, split, seed, count, size) alone: random
numbers come from numpy's frozen ``RandomState`` and all drawing is done in float64, so every
machine makes the same bytes. None of these tasks is one of the eight of the papers.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightning_merge.core.errors import InputError
from lightning_merge.data.canvas import Array, Canvas, hsv, stroke_distance

__all__ = ["DRAWN_TASKS", "PRETRAINING_CLASSES", "DrawnTask", "draw", "draw_pretraining"]

Labels = NDArray[np.int64]

SPLITS = {"train": 1760, "test": 400}  # images per task unless `count` says otherwise
DIGITS = "digits8x8"
DIGITS_SPLITS = {"train": 1297, "test": 500}  # all of scikit-learn's images


def _by_class(
    labels: Labels, figures: tuple[Callable[[Array, Array], Array], ...], x: Array, y: Array
) -> Array:
    """Map the coordinates x, y [n, s, s] of every picture by the function of its class."""
    result = np.empty_like(x)
    for label, figure in enumerate(figures):
        rows = labels == label
        result[rows] = figure(x[rows], y[rows])
    return result


def _polygon(x: Array, y: Array, sides: int) -> Array:
    """Return the signed distance to a regular polygon with one corner up at distance 1."""
    half = np.pi / sides
    angle = (np.arctan2(x, -y) % (2 * half)) - half
    return np.hypot(x, y) * np.cos(angle) - np.cos(half)


SHAPES = {
    "disc": lambda x, y: np.hypot(x, y) - 0.8,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) - 0.75,
    "triangle": lambda x, y: _polygon(x, y, 3),
    "diamond": lambda x, y: 1.5 * abs(x) + 0.8 * abs(y) - 0.8,
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.7) - 0.2,
    "cross": lambda x, y: np.minimum(
        np.maximum(abs(x) - 0.25, abs(y) - 0.9), np.maximum(abs(y) - 0.25, abs(x) - 0.9)
    ),
    "star": lambda x, y: np.hypot(x, y) - 0.6 - 0.3 * np.cos(5 * np.arctan2(x, -y)),
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.9, 0.8 - np.hypot(x - 0.5, y)),
}

TEXTURES = {
    "checker": lambda x, y: np.sin(x) * np.sin(y),
    "dots": lambda x, y: np.cos(x) + np.cos(y) - 0.6,
    "grid": lambda x, y: np.maximum(np.cos(x), np.cos(y)) - 0.7,
    "rings": lambda x, y: np.sin(1.3 * np.hypot(x, y)),
    "rays": lambda x, y: np.sin(6 * np.arctan2(x, y)),
    "zigzag": lambda x, y: np.sin(y + 1.5 * abs((x / np.pi) % 2 - 1) * np.pi),
    "bricks": lambda x, y: (
        0.8
        - np.maximum(np.cos(y), np.where(np.sin(y / 2) > 0, np.cos(x / 2), -np.cos(x / 2)) - 0.1)
    ),
    "spiral": lambda x, y: np.sin(1.3 * np.hypot(x, y) + 2 * np.arctan2(x, y)),
}

HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "violet", "pink")
ANGLES = ("0", "22.5", "45", "67.5", "90", "112.5", "135", "157.5")
WINDS = ("east", "south_east", "south", "south_west", "west", "north_west", "north", "north_east")
# The seven strokes (ends as x0, y0, x1, y1) and which of them each digit lights.
STROKES = np.array(
    [[-5, -9, 5, -9], [5, -9, 5, 0], [5, 0, 5, 9], [-5, 9, 5, 9], [-5, 0, -5, 9], [-5, -9, -5, 0],
     [-5, 0, 5, 0]]
) / 10  # fmt: skip
LIT = ("012345", "12", "01346", "01236", "1256", "02356", "023456", "012", "0123456", "012356")


def _draw_shapes(canvas: Canvas, labels: Labels) -> Array:
    """Draw one filled figure of any colour, place and size, slightly turned."""
    x, y = canvas.frame(turn=0.4, scale=(0.55, 0.85), shift=0.25)
    return canvas.paint(canvas.cover(0.6 * _by_class(labels, tuple(SHAPES.values()), x, y)))


def _draw_stripes(canvas: Canvas, labels: Labels) -> Array:
    """Draw parallel stripes in the direction of the class, and fainter ones in any direction."""
    own = (labels[:, None, None] + canvas.uniform(-0.2, 0.2)) * np.pi / len(ANGLES)
    waves = []
    for angle in (own, canvas.uniform(0, np.pi)):
        across = canvas.x * np.sin(angle) + canvas.y * np.cos(angle)
        waves.append(np.sin(canvas.uniform(5, 11) * across + canvas.uniform(0, 2 * np.pi)))
    return canvas.paint(0.5 + 0.34 * waves[0] + 0.16 * waves[1])


def _draw_segments(canvas: Canvas, labels: Labels) -> Array:
    """Draw a slanted seven-segment digit in one colour; unlit strokes are faint."""
    x, y = canvas.frame(turn=0.15, scale=(0.6, 0.85), shift=0.2)
    x = x + canvas.uniform(0, 0.25) * y
    lit = np.array([[str(i) in digit for i in range(7)] for digit in LIT])[labels]
    faint, width = canvas.uniform(0, 0.3), canvas.uniform(0.08, 0.16)
    mask = np.zeros_like(x)
    for i, stroke in enumerate(STROKES):
        inside = canvas.cover(stroke_distance(x, y, stroke[None, :2], stroke[None, 2:]) - width)
        mask = np.maximum(mask, inside * np.where(lit[:, i, None, None], 1, faint))
    return canvas.paint(mask)


def _draw_hues(canvas: Canvas, labels: Labels) -> Array:
    """Draw a mosaic of 4 x 4 tiles, about half of them in the hue of the class."""
    centres = np.array([0.0, 0.08, 0.16, 0.35, 0.5, 0.63, 0.77, 0.9])[labels][:, None]
    own = canvas.uniform(0, 1, 16) < 0.5
    hue = np.where(own, centres + canvas.uniform(-0.03, 0.03, 16), canvas.uniform(0, 1, 16))
    tiles = hsv(hue % 1, canvas.uniform(0.5, 1, 16), canvas.uniform(0.3, 1, 16))
    row, column = ((axis[0] + 1) * 2 // 1 for axis in (canvas.y, canvas.x))
    return canvas.grain(tiles[:, :, (4 * row + column).astype(int)], 0.12)


def _draw_counts(canvas: Canvas, labels: Labels) -> Array:
    """Draw one to six separate blobs."""
    cells = canvas.uniform(0, 1, 9).argsort(axis=1)
    mask = np.zeros((canvas.count, canvas.size, canvas.size))
    for i in range(6):
        row, column = (part[:, None, None] * 0.62 - 0.62 for part in divmod(cells[:, i], 3))
        x = canvas.x - column - canvas.uniform(-0.08, 0.08)
        y = canvas.y - row - canvas.uniform(-0.08, 0.08)
        blob = canvas.cover(np.hypot(x, y) - canvas.uniform(0.15, 0.23))
        mask = np.maximum(mask, blob * (i <= labels)[:, None, None])
    return canvas.paint(mask, dark_ink=0)


def _draw_textures(canvas: Canvas, labels: Labels) -> Array:
    """Draw a regular texture that fills the picture, at any scale."""
    x, y = canvas.frame(turn=0.4, scale=(0.08, 0.15), shift=0.3)
    return canvas.paint(np.clip(0.5 + 2 * _by_class(labels, tuple(TEXTURES.values()), x, y), 0, 1))


def _draw_arrows(canvas: Canvas, labels: Labels) -> Array:
    """Draw a round board with an arrow in one of eight directions."""
    board = canvas.cover(np.hypot(canvas.x, canvas.y) - canvas.uniform(0.85, 1.0))
    x, y = canvas.frame(turn=0.2, scale=(0.45, 0.7), shift=0.25)
    angle = labels[:, None, None] * np.pi / 4
    x, y = x * np.cos(angle) + y * np.sin(angle), abs(y * np.cos(angle) - x * np.sin(angle))
    shaft = stroke_distance(x, y, np.array([[-0.8, 0.0]]), np.array([[0.8, 0.0]]))
    tip = stroke_distance(x, y, np.array([[0.8, 0.0]]), np.array([[0.2, 0.55]]))
    arrow = canvas.cover(np.minimum(shaft, tip) - canvas.uniform(0.1, 0.18))
    return canvas.paint(0.4 * (1 - board) + arrow)


@dataclass(frozen=True)
class DrawnTask:
    """One embedded task.

    Attributes:
        classes: Name of every class, in the order of the labels.
        description: One line for `list` and the README.
        painter: Draws [n, 3, s, s] in [0, 1] for labels [n]; None if the images are real.

    Examples:
        >>> DRAWN_TASKS["drawn_counts"].classes
        ('1', '2', '3', '4', '5', '6')
    """

    classes: tuple[str, ...]
    description: str
    painter: Callable[[Canvas, Labels], Array] | None


NUMBERS = tuple("0123456789")
DRAWN_TASKS: Mapping[str, DrawnTask] = MappingProxyType(
    {
        DIGITS: DrawnTask(NUMBERS, "real handwritten digits, 8x8, of scikit-learn", None),
        "drawn_arrows": DrawnTask(WINDS, "direction of an arrow on a board", _draw_arrows),
        "drawn_counts": DrawnTask(tuple("123456"), "number of blobs", _draw_counts),
        "drawn_hues": DrawnTask(HUES, "commonest hue of a mosaic", _draw_hues),
        "drawn_segments": DrawnTask(NUMBERS, "digit of a seven-segment display", _draw_segments),
        "drawn_shapes": DrawnTask(tuple(SHAPES), "form of one filled figure", _draw_shapes),
        "drawn_stripes": DrawnTask(ANGLES, "direction of stripes in degrees", _draw_stripes),
        "drawn_textures": DrawnTask(tuple(TEXTURES), "kind of a regular texture", _draw_textures),
    }
)


def draw(
    task: str, split: str, *, size: int = 32, seed: int = 0, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """Draw the images of one split of an embedded task.

    Train and test never share an image, whatever their seeds: the division of the real digits is
    fixed, and the drawn images of the two splits come from different random streams.

    Args:
        task: A name of DRAWN_TASKS.
        split: "train" or "test".
        size: Side of the images in pixels, at least 16.
        seed: Another seed draws other images (of the digits: another selection and order).
        count: Number of images n; the classes of drawn images are balanced. Default: 1760 for
            train (digits: all 1297), 400 for test.

    Returns:
        Images, uint8 [n, 3, size, size], and labels, int64 [n].

    Raises:
        InputError: The task or split is unknown, the size is below 16, the seed is out of range,
            or the count is below 1 or above the number of digits.

    Examples:
        >>> images, labels = draw("drawn_arrows", "test", size=16, count=8)
        >>> images.shape, sorted(labels.tolist())
        (torch.Size([8, 3, 16, 16]), [0, 1, 2, 3, 4, 5, 6, 7])
    """
    if task not in DRAWN_TASKS:
        raise InputError(f"task={task!r} is not embedded; choose one of {', '.join(DRAWN_TASKS)}")
    if split not in SPLITS:
        raise InputError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
    painter = DRAWN_TASKS[task].painter
    if count is None:
        count = SPLITS[split] if painter else min(SPLITS[split], DIGITS_SPLITS[split])
    rng = _rng(f"{task}/{split}", seed, count, size)
    if painter is None:
        return _digits(rng, split, count, size)
    labels = rng.permutation(np.arange(count) % len(DRAWN_TASKS[task].classes))
    return _tensors(painter(Canvas(rng, count, size), labels), labels)


PRETRAINING_CLASSES = 48
CHUNK = 1200  # pictures drawn at a time, in float64


def draw_pretraining(count: int, *, size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw generic images to pretrain a base on; no embedded task shares a class with them.

    The first half of the 48 classes are fixed scribbles of four strokes, the second half fixed
    arrangements of five blots of colour, all turned, scaled, shifted, recoloured and noisy.

    Args:
        count: Number of images n, balanced over the classes.
        size: Side of the images in pixels, at least 16.
        seed: Another seed draws other images of the same classes.

    Returns:
        Images, uint8 [n, 3, size, size], and labels, int64 [n].

    Raises:
        InputError: The count is below 1, the size is below 16 or the seed is out of range.

    Examples:
        >>> images, labels = draw_pretraining(96, size=16)
        >>> images.shape, labels.unique().numel()
        (torch.Size([96, 3, 16, 16]), 48)
    """
    rng = _rng("pretraining", seed, count, size)
    labels = rng.permutation(np.arange(count) % PRETRAINING_CLASSES)
    half = PRETRAINING_CLASSES // 2
    images = np.empty((count, 3, size, size), dtype=np.uint8)
    for chosen, paint in ((labels < half, _scribbles), (labels >= half, _blots)):
        places = np.flatnonzero(chosen)
        for rows in np.split(places, range(CHUNK, len(places), CHUNK)):
            pictures = paint(Canvas(rng, len(rows), size), labels[rows] % half)
            images[rows] = _bytes(pictures)
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def _scribbles(canvas: Canvas, labels: Labels) -> Array:
    points = np.random.RandomState(1).uniform(-0.9, 0.9, (PRETRAINING_CLASSES // 2, 5, 2))[labels]
    x, y = canvas.frame(turn=0.25, scale=(0.65, 1.0), shift=0.2)
    strokes = (stroke_distance(x, y, points[:, i], points[:, i + 1]) for i in range(4))
    nearest = np.minimum.reduce(list(strokes))
    return canvas.paint(canvas.cover(nearest - canvas.uniform(0.07, 0.16)))


def _blots(canvas: Canvas, labels: Labels) -> Array:
    fixed = np.random.RandomState(2)
    places = fixed.uniform(-0.9, 0.9, (PRETRAINING_CLASSES // 2, 5, 2))[labels]
    hues = fixed.uniform(0, 1, (PRETRAINING_CLASSES // 2, 5))[labels]
    x, y = canvas.frame(turn=0.25, scale=(0.7, 1.1), shift=0.2)
    squares = [
        (x - px) ** 2 + (y - py) ** 2 for px, py in places[..., None, None].transpose(1, 2, 0, 3, 4)
    ]
    share = np.exp(-canvas.uniform(4, 12)[:, None] * np.stack(squares, axis=1))
    share /= share.sum(axis=1, keepdims=True) + 1e-9
    hue = (hues + canvas.uniform(-0.08, 0.08, 5)) % 1
    colours = hsv(hue, canvas.uniform(0.3, 1, 5), canvas.uniform(0.3, 1, 5))
    return canvas.grain(np.einsum("ncm,nmhw->nchw", colours, share), 0.12)


def _digits(rng: np.random.RandomState, split: str, count: int, size: int) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # a second of import, only where it is needed

    images, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(labels))
    pool = order[: DIGITS_SPLITS["test"]] if split == "test" else order[DIGITS_SPLITS["test"] :]
    if count > len(pool):
        raise InputError(
            f"count={count}: {DIGITS} has {len(pool)} images for {split}; ask for fewer"
        )
    chosen = rng.permutation(pool)[:count]
    grey = torch.from_numpy(images[chosen].reshape(-1, 1, 8, 8) / 16)
    large = F.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
    return _tensors(large.expand(-1, 3, -1, -1).numpy(), labels[chosen])


def _rng(stream: str, seed: int, count: int, size: int) -> np.random.RandomState:
    if count < 1:
        raise InputError(f"count={count}: ask for at least 1 image")
    if size < 16:
        raise InputError(f"size={size} is too small to draw on; give at least 16 pixels")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed} must be at least 0 and below 2**32")
    return np.random.RandomState([zlib.crc32(stream.encode()), seed])


def _bytes(images: Array) -> NDArray[np.uint8]:
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)


def _tensors(images: Array, labels: Labels) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(_bytes(images)), torch.from_numpy(labels.astype(np.int64))
