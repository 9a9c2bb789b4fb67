"""Corruptions against their formulas, and what of the data they reach."""

import io
import json

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from PIL import Image
from scipy import ndimage

from lightning_merge.core.errors import InputError
from lightning_merge.data import corrupt, spatter
from lightning_merge.data.corrupt import CONSTANTS, CORRUPTIONS, SIGMA, Corruption

SEVERITIES = range(1, 6)


@pytest.fixture
def photo():
    """A smooth random image with some texture, uint8 [64, 64, 3]."""
    rng = RandomState(1)
    values = ndimage.gaussian_filter(rng.normal(size=(64, 64, 3)), (6, 6, 0))
    values = values / abs(values).max() * 110 + 128 + rng.normal(0, 5, values.shape)
    return np.clip(values, 0, 255).astype(np.uint8)


@pytest.fixture
def image(photo):
    return torch.from_numpy(photo.transpose(2, 0, 1).copy())


# Formulas


@pytest.mark.parametrize("scale", [0.04, 0.18])
def test_gaussian_noise_has_the_published_spread(scale):
    grey = np.full((200, 200, 3), 127, np.uint8)
    noise = corrupt.gaussian_noise(grey, scale, RandomState(0)) / 255 - 127 / 255
    assert abs(noise.mean()) < 4 * scale / noise.size**0.5
    assert noise.std() == pytest.approx(scale, rel=0.02)
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("sigma", [10, 15, 20])
def test_gaussian_noise_by_its_deviation_in_grey_levels(sigma):
    grey = torch.full((3, 224, 224), 127, dtype=torch.uint8)
    noise = Corruption(SIGMA, sigma).apply(grey, ["one"]).double() - 127
    assert noise.std().item() == pytest.approx((sigma**2 + 1 / 12) ** 0.5, rel=0.01)
    assert abs(noise.mean().item()) < 4 * sigma / noise.numel() ** 0.5


@pytest.mark.parametrize("amount", [0.01, 0.27])
def test_impulse_noise_is_salt_and_pepper_in_every_value(amount):
    grey = np.full((200, 200, 3), 100, np.uint8)
    noisy = corrupt.impulse_noise(grey, amount, RandomState(0))
    shares = [(noisy == value).mean() for value in (0, 255)]
    tolerance = 4 * (amount / noisy.size) ** 0.5
    assert shares == pytest.approx([amount / 2] * 2, abs=tolerance)
    assert ((noisy != 100).all(-1)).mean() == pytest.approx(amount**3, abs=0.005)
    assert set(np.unique(noisy)) == {0, 100, 255}


def test_motion_blur_is_a_one_sided_gaussian_along_a_line(photo):
    class Flat:
        def uniform(self, low, high):
            assert (low, high) == (-45, 45)
            return 0.0

    blurred = corrupt.motion_blur(photo, (6, 2.0), Flat())
    kernel = np.exp(-(np.arange(13) ** 2) / 8.0)
    kernel /= kernel.sum()
    padded = np.pad(photo.astype(float), ((0, 0), (0, 12), (0, 0)), mode="edge")
    want = sum(k * padded[:, i : i + 64] for i, k in enumerate(kernel))
    assert np.abs(blurred - want).max() <= 0.5 + 1e-9


def test_motion_blur_of_a_point_is_the_line_it_moved_along():
    black = np.zeros((64, 64, 3), np.uint8)
    black[32, 32] = 255
    for seed in range(4):
        angle = np.radians(RandomState(seed).uniform(-45, 45))
        blurred = corrupt.motion_blur(black, (10, 12.0), RandomState(seed))[..., 0]
        y, x = np.nonzero(blurred)
        along = (32 - x) * np.cos(angle) + (32 - y) * np.sin(angle)
        across = (32 - x) * np.sin(angle) - (32 - y) * np.cos(angle)
        assert abs(across).max() <= 0.75
        assert along.min() >= -0.75
        assert along.max() == pytest.approx(20, abs=0.75)


@pytest.mark.parametrize("factor", [0.4, 0.05])
def test_contrast_keeps_the_means_and_scales_the_spread(photo, factor):
    low = corrupt.contrast(photo, factor, RandomState(0))
    assert np.allclose(low.mean((0, 1)), photo.mean((0, 1)))
    assert np.allclose(low.std((0, 1)), factor * photo.std((0, 1)))


@pytest.mark.parametrize("quality", [80, 25, 7])
def test_jpeg_is_pillows_at_that_quality(photo, quality):
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=quality)
    want = np.asarray(Image.open(io.BytesIO(file.getvalue())))
    assert np.array_equal(corrupt.jpeg_compression(photo, quality, RandomState(0)), want)


def test_pixels_are_the_means_of_blocks(photo):
    blocky = corrupt.pixelate(photo, 0.25, RandomState(0))
    means = photo.reshape(16, 4, 16, 4, 3).mean((1, 3))
    assert np.abs(blocky[::4, ::4] - means).max() <= 1
    assert np.array_equal(blocky, blocky[::4, ::4].repeat(4, 0).repeat(4, 1))


# Spatter and what it is made of


def test_edges_of_a_disc_are_a_closed_thin_ring():
    y, x = np.mgrid[:64, :64] - 31.5
    disc = 200.0 * (np.hypot(x, y) < 20)
    ring = spatter.edges(disc)
    distance = np.hypot(x, y)[ring]
    assert 18 < distance.min() <= distance.max() < 21.5
    _inside, count = ndimage.label(~ring)
    assert count == 2  # the ring separates inside from outside
    assert ring.sum() < 2 * 2 * np.pi * 20


def test_weak_edges_count_only_beside_strong_ones():
    weak = np.zeros((16, 16))
    weak[:, 8:] = 20  # |dx| = 80: between the thresholds 50 and 150
    assert not spatter.edges(weak).any()
    weak[:8, 8:] = 60  # strong where the step is high
    assert spatter.edges(weak)[:, 7:9].any(1).all()


def test_equalised_ranks_follow_the_definition():
    values = RandomState(0).binomial(20, 0.3, size=(32, 32))
    lowest = (values == values.min()).sum()
    ranks = np.array([(values <= v).sum() - lowest for v in values.ravel()])
    want = np.rint(255 * ranks / (values.size - lowest)).reshape(values.shape)
    assert np.array_equal(spatter.equalized(values), want)
    assert spatter.equalized(np.full((2, 2), 7)).tolist() == [[7, 7], [7, 7]]


def test_mud_is_brown_where_smoothed_noise_is_high_and_nowhere_else(photo):
    mean, std, smoothing, threshold, softening, _ = constants = (0.65, 0.3, 1, 0.65, 1.5, True)
    muddy = spatter.spatter(photo, constants, RandomState(0))
    noise = RandomState(0).normal(mean, std, (64, 64))
    high = ndimage.gaussian_filter(noise, smoothing, mode="nearest") > threshold
    cover = ndimage.gaussian_filter(high.astype(float), softening, mode="nearest")
    cover[cover < 0.8] = 0
    want = photo + cover[..., None] * (np.array([63, 42, 20]) - photo)
    assert np.allclose(muddy, want)
    assert 0.05 < (cover > 0).mean() < 0.8


def test_water_only_brightens_within_drops(photo):
    for mean, std, smoothing, threshold, strength, _ in [c for c in _spatter(64) if not c[-1]]:
        constants = (mean, std, smoothing, threshold, strength, False)
        light = spatter.spatter(photo, constants, RandomState(3)) - photo
        noise = RandomState(3).normal(mean, std, (64, 64))
        dry = ndimage.gaussian_filter(noise, smoothing, mode="nearest") < threshold
        assert light.min() == 0
        assert light[dry].max() == 0
        assert light.max((0, 1)) == pytest.approx(strength * np.array([175, 238, 238]))


def test_without_a_drop_nothing_happens(photo):
    for mud in (False, True):
        assert np.array_equal(
            spatter.spatter(photo, (0, 0.1, 1, 0.9, 1, mud), RandomState(0)), photo
        )


def _spatter(size):
    return CONSTANTS[size][1]["spatter"]


# Severities


@pytest.mark.parametrize("size", [*CONSTANTS])
@pytest.mark.parametrize("name", [*CORRUPTIONS])
def test_every_severity_changes_the_image_and_keeps_its_form(name, size):
    values = ndimage.gaussian_filter(RandomState(0).normal(size=(3, size, size)), (0, 3, 3))
    image = torch.from_numpy((128 + 100 * values / abs(values).max()).astype(np.uint8))
    before, losses = image.clone(), []
    for severity in SEVERITIES:
        corrupted = Corruption(name, severity).apply(image, ["cars", "hash"])
        assert corrupted.shape == image.shape
        assert corrupted.dtype is torch.uint8
        losses.append((corrupted.float() - image.float()).square().mean().item())
    assert torch.equal(image, before)
    assert all(losses)
    if name != "spatter":  # whose kinds of drops change between severities
        assert min(losses) == losses[0] < losses[-1] == max(losses)


def test_constants_are_those_of_the_closest_size():
    notes = {size: Corruption("contrast", 1).note(size) for size in (28, 32, 48, 64, 96, 160, 336)}
    found = [note.split("constants of ")[1].split(",")[0] for note in notes.values()]
    assert found == ["CIFAR-10-C"] * 2 + ["Tiny ImageNet-C"] * 3 + ["ImageNet-C"] * 2


def test_the_note_of_a_table_says_what_was_measured(make):
    assert make().kept.notes == []
    (note,) = make(corruption=Corruption("spatter", 4)).kept.notes
    assert note.startswith(
        "Test images are corrupted: spatter of severity 4 (constants of CIFAR-10-C"
    )
    (note,) = make(corruption=Corruption(SIGMA, 15)).kept.notes
    assert "standard deviation 15 on the scale 0 to 255 (at 8 x 8 px)" in note


def test_random_numbers_belong_to_task_and_image(image):
    corruption = Corruption("gaussian_noise", 3)
    one = corruption.apply(image, ["cars", "a"])
    assert torch.equal(one, corruption.apply(image, ["cars", "a"]))
    assert not torch.equal(one, corruption.apply(image, ["cars", "b"]))
    assert not torch.equal(one, corruption.apply(image, ["pets", "a"]))


# The data module


def test_only_test_images_are_corrupted(make, tmp_path):
    folder = str(tmp_path / "cache")
    clean = make()
    noisy = make(corruption={"name": "impulse_noise", "severity": 5}, image_cache=folder)
    noisy.setup("fit")
    for task in clean.tasks:
        for part in ("train", "validation", "coefficients", "test"):
            one, other = (
                data.inputs(task, part)[list(range(len(clean.inputs(task, part))))]
                for data in (clean, noisy)
            )
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.inputs, other.inputs) == (part != "test")
    again = make(image_cache=folder)  # what was kept on disk is clean
    assert torch.equal(
        again.inputs("one", "test")[[3]].inputs, clean.inputs("one", "test")[[3]].inputs
    )


@pytest.mark.parametrize("memory", [0.0, 2.0])
def test_batches_and_processes_do_not_matter(make, memory):
    corruption = Corruption("motion_blur", 2)
    whole, single = (make(corruption=corruption, cache_gib=memory) for _ in range(2))
    images = whole.inputs("two", "test")
    images.prepare()
    together = images[list(range(len(images)))].inputs
    for position in reversed(range(len(images))):
        assert torch.equal(single.inputs("two", "test")[position].inputs[0], together[position])


def test_the_record_of_splits_is_that_of_clean_images(make, tmp_path):
    for name, options in {"clean": {}, "noisy": {"corruption": Corruption("contrast", 1)}}.items():
        make(**options).write_splits(tmp_path / name)
    assert (tmp_path / "clean").read_text() == (tmp_path / "noisy").read_text()
    assert json.loads((tmp_path / "clean").read_text())["tasks"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"name": "fog", "severity": 1},
            r"data\.corruption\.name='fog': choose one of gaussian_no",
        ),
        ({"name": "contrast", "severity": 6}, r"severity=6: contrast takes 1, 2, 3, 4 or 5"),
        ({"name": "contrast", "severity": 0}, r"severity=0: contrast takes 1, 2, 3, 4 or 5"),
        ({"name": "contrast", "severity": 1.5}, r"severity=1\.5: contrast"),
        ({"name": SIGMA, "severity": 256}, r"severity=256: gaussian_sigma takes a standard deviat"),
        ({"name": "contrast"}, r"data\.corruption=.*: give name and severity"),
        ({"name": "contrast", "severity": 1, "seed": 2}, r"give name and severity"),
    ],
)
def test_bad_corruptions(make, given, message):
    with pytest.raises(InputError, match=message):
        make(corruption=given)
