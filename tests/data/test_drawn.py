"""The embedded tasks: same bytes everywhere, nothing shared between splits, labels that mean it."""

import hashlib

import numpy as np
import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.data.canvas import Canvas, hsv, stroke_distance
from lightning_merge.data.drawn import (
    DRAWN_TASKS,
    HUES,
    PRETRAINING_CLASSES,
    draw,
    draw_pretraining,
)

TASKS = list(DRAWN_TASKS)


def keys(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", [16, 32])
def test_shapes_types_and_balance(task, size):
    images, labels = draw(task, "train", size=size, count=240)
    classes = len(DRAWN_TASKS[task].classes)
    assert images.shape == (240, 3, size, size)
    assert images.dtype == torch.uint8
    assert labels.shape == (240,)
    assert labels.dtype == torch.int64
    counts = torch.bincount(labels, minlength=classes)
    assert len(counts) == classes
    spread = 30 if DRAWN_TASKS[task].painter is None else 1
    assert counts.max() - counts.min() <= spread


@pytest.mark.parametrize("task", TASKS)
def test_no_image_twice_within_or_between_splits(task):
    train, _ = draw(task, "train", size=16, seed=0)
    test, _ = draw(task, "test", size=16, seed=1)
    assert len(keys(train)) == len(train)
    assert len(keys(test)) == len(test)
    assert not keys(train) & keys(test)


@pytest.mark.parametrize("task", TASKS)
def test_same_arguments_same_bytes_other_seed_other_images(task):
    first, again, other = (draw(task, "test", size=16, count=40, seed=s) for s in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_bytes_do_not_depend_on_the_machine():
    digest = hashlib.sha256()
    for task in TASKS:
        for part in draw(task, "test", size=16, count=24):
            digest.update(part.numpy().tobytes())
    for part in draw_pretraining(48, size=16):
        digest.update(part.numpy().tobytes())
    assert digest.hexdigest()[:16] == "d8a4b9bb7ab528f1"


def test_global_random_state_is_neither_read_nor_changed():
    np.random.seed(0)
    torch.manual_seed(0)
    first = draw("drawn_hues", "train", size=16, count=8)[0]
    expected = np.random.RandomState(0).rand()
    assert np.random.rand() == expected
    assert torch.equal(first, draw("drawn_hues", "train", size=16, count=8)[0])


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    real, names = load_digits(return_X_y=True)
    images, labels = draw("digits8x8", "test", size=16, count=50)
    known = {tuple(np.rint(row).astype(int)): name for row, name in zip(real, names, strict=True)}
    # Bilinear enlargement by two leaves the corners as they were and keeps the mean of the middle.
    corners = {(row[0], row[7], row[56], row[63]) for row in map(np.array, known)}
    for image, label in zip(images, labels, strict=True):
        grey = np.rint(image[0, [0, 0, 15, 15], [0, 15, 0, 15]].numpy() / 255 * 16)
        assert tuple(grey.astype(int)) in corners
        assert 0 <= label < 10
    assert torch.equal(images[:, 0], images[:, 2])


def test_every_digit_is_reached_by_one_split_only():
    train = draw("digits8x8", "train", size=16, count=1297)[0]
    test = draw("digits8x8", "test", size=16, count=500)[0]
    assert len(keys(torch.cat([train, test]))) == 1797


def test_commonest_hue_can_be_read_off_the_pixels():
    images, labels = draw("drawn_hues", "test", size=32, count=80)
    tiles = torch.nn.functional.avg_pool2d(images.double() / 255, 8).flatten(2)
    centres = np.array([0.0, 0.08, 0.16, 0.35, 0.5, 0.63, 0.77, 0.9])[None]
    pure = torch.from_numpy(hsv(centres, np.ones_like(centres), np.ones_like(centres)))[0]
    chroma = tiles - tiles.amin(1, keepdim=True)
    votes = torch.cosine_similarity(chroma[..., None], pure[None, :, None], dim=1).argmax(-1)
    guess = torch.stack([(votes == c).sum(1) for c in range(len(HUES))], 1).argmax(1)
    assert (guess == labels).double().mean() > 0.6


def test_blobs_can_be_counted():
    images, labels = draw("drawn_counts", "test", size=64, count=60)
    grey = images.double().mean(1)
    ink = (grey - grey[:, :3, :3].mean((1, 2), keepdim=True)).abs() > 50
    area = ink.double().mean((1, 2))
    few, many = area[labels == 0].mean(), area[labels == 5].mean()
    assert 4 < many / few < 8


def test_pretraining_images():
    images, labels = draw_pretraining(96, size=16)
    assert images.shape == (96, 3, 16, 16)
    assert torch.bincount(labels).tolist() == [2] * PRETRAINING_CLASSES
    assert len(keys(images)) == 96
    other, _ = draw_pretraining(96, size=16, seed=1)
    assert not keys(images) & keys(other)


def test_stroke_distance_agrees_with_sampling_the_stroke():
    canvas = Canvas(np.random.RandomState(0), 1, 16)
    start, end = np.array([[-0.5, 0.3]]), np.array([[0.7, -0.2]])
    points = start + np.linspace(0, 1, 4001)[:, None] * (end - start)
    gaps = np.hypot(canvas.x[..., None] - points[:, 0], canvas.y[..., None] - points[:, 1])
    distance = stroke_distance(canvas.x, canvas.y, start, end)
    half_a_step = 1.3 / 4000 / 2
    np.testing.assert_allclose(distance, gaps.min(-1), atol=half_a_step)


def test_hsv_agrees_with_the_standard_library():
    import colorsys

    values = np.random.RandomState(0).rand(3, 1, 50)
    expected = [colorsys.hsv_to_rgb(*column) for column in values[:, 0].T]
    np.testing.assert_allclose(hsv(*values)[0].T, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist", "train"), "task='mnist' is not embedded; choose one of digits8x8"),
        (("drawn_hues", "val"), "split='val': choose one of train, test"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(InputError, match=message):
        draw(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count=0: ask for at least 1 image"),
        ({"size": 8}, "size=8 is too small"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"count": 501}, "count=501: digits8x8 has 500 images"),
    ],
)
def test_impossible_requests(options, message):
    with pytest.raises(InputError, match=message):
        draw("digits8x8", "test", **options)
