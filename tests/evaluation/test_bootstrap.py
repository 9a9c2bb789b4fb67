"""Resampling against binomial quantiles, analytic variances, hand computations and coverage."""

import numpy as np
import pytest
from scipy import stats

from lightning_merge.evaluation.bootstrap import (
    Interval,
    holm,
    p_of_seeds,
    p_of_signs,
    p_value,
    percentiles,
    resample,
)


def columns(accuracy):
    return np.stack([*accuracy.values()], axis=-1)


def average(accuracy):
    return columns(accuracy).mean(axis=-1, keepdims=True)


def bits(images, right):
    """A row of correct answers to the first images."""
    return (np.arange(images) < right).astype(float)


def drawn(rows, **options):
    """Resampled accuracies of one task and seed, [resamples, rows]."""
    return resample({"a": np.stack(rows)[None]}, columns, **options)[..., 0]


@pytest.mark.parametrize(
    ("images", "right"), [(40, 30), (200, 130), (1000, 985), (50, 50), (50, 0)]
)
def test_the_interval_of_an_accuracy_has_binomial_quantiles(images, right):
    ends = percentiles(drawn([bits(images, right)]))[:, 0]
    exact = stats.binom.ppf([0.025, 0.975], images, right / images) / images
    assert ends == pytest.approx(exact, abs=1.01 / images)


@pytest.mark.parametrize(("one", "other", "both"), [(30, 12, 100), (5, 5, 20), (0, 9, 60)])
def test_a_paired_difference_has_mcnemars_variance(one, other, both):
    """Of n images, b and c are answered correctly by one candidate alone."""
    images = 200
    first = np.concatenate([np.ones(both + one), np.zeros(images - both - one)])
    second = np.concatenate([np.ones(both), np.zeros(one), np.ones(other)])
    second = np.concatenate([second, np.zeros(images - len(second))])
    difference = np.diff(drawn([second, first]), axis=1)[:, 0]
    variance = (one + other - (one - other) ** 2 / images) / images**2
    assert difference.mean() == pytest.approx((one - other) / images, abs=4e-4)
    assert difference.std() == pytest.approx(variance**0.5, rel=0.03)
    unpaired = drawn([first])[:, 0].var() + drawn([second])[:, 0].var()
    assert difference.var() < unpaired


def test_an_average_counts_tasks_alike_and_resamples_each_apart():
    right = {"a": bits(1000, 600), "b": bits(50, 40)}
    found = resample({task: row[None, None] for task, row in right.items()}, average)
    variance = (0.6 * 0.4 / 1000 + 0.8 * 0.2 / 50) / 4
    assert found.mean() == pytest.approx(0.7, abs=2e-3)
    assert found.std() == pytest.approx(variance**0.5, rel=0.03)


def test_seeds_are_drawn_whole():
    """Two seeds, one with all images correct and one with none: 0, 1/2 or 1."""
    cells = {"a": np.stack([bits(20, 20), bits(20, 0)])[:, None]}
    values, counts = np.unique(resample(cells, columns), return_counts=True)
    assert values.tolist() == [0, 0.5, 1]
    assert counts / 10_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_all_seeds_keep_the_same_images():
    """Seeds that agree on every image add nothing, and take nothing from what images add."""
    row = bits(100, 70)
    one = resample({"a": row[None, None]}, columns)
    four = resample({"a": np.stack([row] * 4)[:, None]}, columns)
    np.testing.assert_allclose(four, one)


def test_crossed_variances_add():
    """Seeds shift every image's chance; images differ, too."""
    generator, seeds, images = np.random.default_rng(0), 12, 400
    chance = np.clip(0.6 + 0.1 * generator.standard_normal(seeds), 0, 1)
    right = (generator.random((seeds, images)) < chance[:, None]).astype(float)
    found = resample({"a": right[:, None]}, columns).std()
    by_seed, by_image = right.mean(axis=1), right.mean(axis=0)
    noise = (right - by_seed[:, None] - by_image + right.mean()).var() / seeds / images
    expected = by_seed.var() / seeds + by_image.var() / images + noise
    assert found == pytest.approx(expected**0.5, rel=0.03)


def test_rows_and_tasks_do_not_depend_on_others():
    generator = np.random.default_rng(0)
    cells = {task: generator.integers(0, 2, (2, 3, 40)).astype(float) for task in "abc"}
    whole = resample(cells, columns, 200)
    fewer = {task: cell[:, [2, 0]] for task, cell in cells.items()}
    np.testing.assert_allclose(resample(fewer, columns, 200), whole[:, [2, 0]])
    turned = {task: cells[task] for task in "cb"}
    np.testing.assert_allclose(resample(turned, columns, 200), whole[..., [2, 1]])
    np.testing.assert_array_equal(resample(cells, columns, 120), whole[:120])


def test_intervals_hold_the_truth_as_often_as_they_say():
    """200 test sets of two tasks; the share of intervals that hold is binomial(200, 0.95)."""
    generator, held, trials = np.random.default_rng(0), 0, 200
    for _ in range(trials):
        cells = {
            "a": (generator.random((1, 1, 80)) < 0.7).astype(float),
            "b": (generator.random((1, 1, 120)) < 0.4).astype(float),
        }
        low, high = percentiles(resample(cells, average, 400))[:, 0, 0]
        held += Interval(low, high).holds(0.55)
    assert stats.binom.ppf(0.001, trials, 0.93) <= held <= stats.binom.ppf(0.999, trials, 0.96)


@pytest.mark.parametrize(("one", "other"), [(40, 20), (30, 25), (20, 45), (25, 25)])
def test_p_is_that_of_the_normal_distribution(one, other):
    first, second = bits(500, one), np.roll(bits(500, other), one)
    difference = np.diff(drawn([second, first]), axis=1)[:, 0]
    z = abs(one - other) / (one + other - (one - other) ** 2 / 500) ** 0.5
    assert p_value(difference) == pytest.approx(2 * stats.norm.sf(z), abs=0.05)
    interval = Interval(*percentiles(difference))
    assert interval.holds(0) == (p_value(difference) >= 0.05)


def test_equal_rows_have_p_one():
    assert p_value(np.zeros(100)) == 1
    assert p_value(np.full(9999, 0.1)) == 2 / 10_000  # no p is zero


@pytest.mark.parametrize("seeds", [[0.01, 0.03], [-0.02, 0.01, 0.05], [-0.3, -0.2, -0.25, -0.1]])
def test_seeds_are_weighed_by_a_t_test(seeds):
    assert p_of_seeds(np.array(seeds)) == pytest.approx(stats.ttest_1samp(seeds, 0).pvalue)


@pytest.mark.parametrize("seeds", [[0.1], [0.1, 0.1 + 1e-15, 0.1], [0.0, 0.0]])
def test_seeds_that_agree_let_the_images_decide(seeds):
    assert p_of_seeds(np.array(seeds)) == 0


@pytest.mark.parametrize("images", [0, 1, 5, 6, 9, 5000])
def test_no_sign_test_of_so_many_images_has_a_smaller_p(images):
    exact = stats.binomtest(images, images).pvalue if images else 1
    assert p_of_signs(images) == pytest.approx(exact)


@pytest.mark.parametrize(
    ("given", "corrected"),
    [
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.05, 0.01], [0.05, 0.02]),
        ([0.6, 0.9, 0.001], [1.0, 1.0, 0.003]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm_by_hand(given, corrected):
    assert holm(given) == pytest.approx(corrected)
