"""Intervals of tables, who is best, and what makes a difference one."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_merge.evaluation import CandidateResult, Results, aggregate, evidence
from lightning_merge.evaluation.bootstrap import Interval, holm, resample
from lightning_merge.evaluation.correctness import FILE, Correctness
from lightning_merge.evaluation.evidence import Compared, with_intervals
from lightning_merge.evaluation.tables import markdown

from .test_tables import parse

SIZES = {"cars": 300, "dtd": 200}


def run_of(right, seed=0, digest="d", **options):
    """A run and its bits, from candidate -> task -> bool [n] or [rows, n]."""
    bits = {
        name: {t: torch.atleast_2d(b) for t, b in cells.items()} for name, cells in right.items()
    }
    rows = {
        name: CandidateResult(
            name,
            {task: float(b.double().mean()) for task, b in cells.items()},
            {task: b.shape[1] for task, b in cells.items()},
            seconds=1.0,
            bound=name == "base",
            transductive=name == "ada",
        )
        for name, cells in bits.items()
    }
    tasks = tuple(next(iter(bits.values())))
    found = Correctness({task: digest for task in tasks}, bits)
    return Results(tasks, rows, seed, {}, **options), found


def answers(seed=0, **chances):
    """Correct answers of each candidate, drawn with its chance, alike where chances are."""
    draw = {
        t: torch.rand(n, generator=torch.Generator().manual_seed(seed)) for t, n in SIZES.items()
    }
    return {name: {t: u < chance for t, u in draw.items()} for name, chance in chances.items()}


def flipped(bits, images, to):
    """The same answers, but for some images that become right or wrong."""
    changed = bits.clone()
    changed[(bits != to).nonzero().flatten()[:images]] = to
    return changed


RUN = answers(base=0.9, ties=0.6, twin=0.6, poor=0.3, ada=0.8)


def test_intervals_are_those_of_the_normal_distribution():
    run = with_intervals(*run_of(RUN))
    for row in run.candidates.values():
        variance = {t: p * (1 - p) / SIZES[t] for t, p in row.accuracy.items()}
        variance["average"] = sum(variance.values()) / 4
        means = {**row.accuracy, "average": row.average}
        assert set(row.intervals) == set(means)
        for column, mean in means.items():
            half = stats.norm.ppf(0.975) * variance[column] ** 0.5
            assert row.intervals[column] == pytest.approx((mean - half, mean + half), abs=0.008)


def test_all_that_cannot_be_told_from_the_best_are_best():
    run = with_intervals(*run_of(RUN))
    best = {name: row.best for name, row in run.candidates.items()}
    everywhere = ("cars", "dtd", "average")
    assert best == {"base": (), "ties": everywhere, "twin": everywhere, "poor": (), "ada": ()}
    _, rows, below = parse(markdown(run))
    low, high = run.candidates["ties"].intervals["average"]
    mean = run.candidates["ties"].average
    assert rows["ties"][-1] == f"**{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]**"
    assert "[" not in "".join(rows["ties"][:-1])
    assert "**" not in "".join([*rows["poor"], *rows["*base*"], *rows["ada †"]])
    assert any("cannot be told from zero" in line for line in below)


def test_results_with_intervals_survive_their_file(tmp_path):
    run = with_intervals(*run_of(RUN))
    assert Results.from_json(run.to_json(tmp_path / "results.json")) == run


def test_a_report_of_one_run_finds_what_the_run_has_stored():
    run, right = run_of(RUN)
    stored = with_intervals(run, right)
    total = aggregate([run], None, [right])
    for name, row in stored.candidates.items():
        assert total.candidates[name].intervals == row.intervals
        assert total.candidates[name].best == row.best
    assert markdown(total) == markdown(stored)


@pytest.mark.parametrize(("images", "verdict"), [(0, ""), (5, ""), (6, "better"), (40, "better")])
def test_better_is_what_the_images_say(images, verdict):
    """All images are for one side, of which an exact sign test knows what they can prove."""
    right = answers(ties=0.5)
    right["gain"] = {**right["ties"], "cars": flipped(right["ties"]["cars"], images, True)}
    total = aggregate(*_against(run_of(right), "ties"))
    found = total.candidates["gain"].differences["average"]
    assert found.spread == (pytest.approx(images / 300 / 2), None)
    assert found.compared.verdict == verdict
    sign = stats.binomtest(images, images).pvalue if images else 1
    assert found.compared.p >= sign
    assert (verdict == "better") == (sign < 0.05)
    back = aggregate(*_against(run_of(right), "gain")).candidates["ties"].differences["average"]
    assert back.compared.verdict == ("worse" if verdict else "")
    assert back.compared.interval == pytest.approx([-x for x in found.compared.interval[::-1]])


def _against(run, against):
    return [run[0]], against, [run[1]]


def test_p_values_are_corrected_over_the_rows():
    right = answers(ties=0.5)
    for name, images in {"few": 3, "some": 8, "more": 14}.items():
        right[name] = {**right["ties"], "dtd": flipped(right["ties"]["dtd"], images, True)}

    def p_of(names):
        kept = {name: right[name] for name in ("ties", *names)}
        rows = aggregate(*_against(run_of(kept), "ties")).candidates
        return [rows[name].differences["average"].compared.p for name in names]

    names = ["few", "some", "more"]
    alone = [p_of([name])[0] for name in names]
    assert p_of(names) == pytest.approx(holm(alone))
    header, rows, below = parse(markdown(aggregate(*_against(run_of(right), "ties"))))
    assert header[-2:] == ["above ties", "p"]
    assert rows["more"][-1].endswith(", better")
    assert rows["few"][-1] == f"{p_of(names)[0]:.3f}"
    assert rows["ties"][-2:] == rows["samples"][-2:] == ["", ""]
    assert any("Holm" in line for line in below)


@pytest.mark.parametrize("images", [6, 9])
def test_what_no_sign_test_proves_of_many_rows_is_not_told(images):
    """The smallest p of a resample is 0.0002; ten of them, corrected, are no proof."""
    right = answers(ties=0.5)
    for row in range(10):
        right[f"row{row}"] = {
            **right["ties"],
            "cars": flipped(right["ties"]["cars"], images, True),
        }
    sign = holm([stats.binomtest(images, images).pvalue] * 10)[0]
    rows = aggregate(*_against(run_of(right), "ties")).candidates
    found = rows["row3"].differences["average"].compared
    assert found.p >= sign
    assert found.verdict == ("better" if sign < 0.05 else "")


def test_bold_is_corrected_over_the_merged_rows():
    """Six images alone are enough against one other row (0.031), and not against two (0.063)."""
    right = answers(base=0.9, ties=0.5)
    right["top"] = {**right["ties"], "cars": flipped(right["ties"]["cars"], 6, True)}
    best = {name: row.best for name, row in with_intervals(*run_of(right)).candidates.items()}
    assert (best["top"], best["ties"]) == (("cars", "dtd", "average"), ("dtd",))
    right["twin"] = right["top"]
    run = with_intervals(*run_of(right))
    assert run.candidates["ties"].best == ("cars", "dtd", "average")
    assert not run.candidates["base"].best


def _gains(*images):
    """Runs in which a row gets more images right than another, by seed."""
    for seed, gain in enumerate(images):
        right = answers(ties=0.5)
        right["sml"] = {**right["ties"], "cars": flipped(right["ties"]["cars"], gain, True)}
        yield run_of(right, seed=seed)


def _of(runs, against):
    return aggregate([run for run, _ in runs], against, [right for _, right in runs])


def test_seeds_of_one_sign_are_no_proof():
    """Gains of 20 and 60 images: the interval leaves out zero, a t test gives 0.30."""
    total = _of([*_gains(20, 60)], "ties")
    found = total.candidates["sml"].differences["average"].compared
    assert not found.interval.holds(0)
    assert found.p == pytest.approx(stats.ttest_1samp([20, 60], 0).pvalue)
    assert found.verdict == ""
    assert "average" in total.candidates["ties"].best
    assert "t test of the seeds' differences" in markdown(total)


def test_seeds_that_agree_say_what_one_says():
    one, three = (_of([*_gains(*gains)], "ties") for gains in ([40], [40] * 3))
    found = [total.candidates["sml"].differences["average"].compared for total in (one, three)]
    assert found[0].p == found[1].p
    assert found[0].interval == pytest.approx(found[1].interval)
    assert found[1].verdict == "better"
    assert "t test" not in markdown(one)


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_seed_alone_makes_no_more_false_verdicts_than_it_should(monkeypatch, seeds):
    """Two rows of equal mean over all seeds, which differ by a normal number for each seed.

    A row of 4096 networks, each right about all images or none, is shifted without any noise of
    the images. The interval leaves out zero where all seeds have one sign.
    """
    monkeypatch.setattr(evidence, "resample", partial(resample, resamples=200))
    generator, tables = np.random.default_rng(0), 300
    half = torch.tensor([[True], [False]]).expand(2, 8)

    def compared():
        runs = []
        for seed, shift in enumerate(generator.standard_normal(seeds)):
            row = (torch.arange(4096) < 2048 + round(200 * shift))[:, None].expand(-1, 8)
            runs.append(run_of({"half": {"cars": half}, "row": {"cars": row}}, seed))
        return _of(runs, "half").candidates["row"].differences["average"].compared

    found = [compared() for _ in range(tables)]

    def plausible(count, chance):
        low, high = stats.binom.ppf([0.001, 0.999], tables, chance)
        return low <= count <= high

    assert plausible(sum(one.p < 0.05 for one in found), 0.05)
    assert plausible(sum(not one.interval.holds(0) for one in found), 2 ** (1 - seeds))


def test_seeds_that_disagree_widen_an_interval_of_a_difference():
    runs = [*_gains(30, 0, 60)]
    total = _of(runs, "ties")
    found = total.candidates["sml"].differences["average"]
    gains = np.array([30, 0, 60]) / 600
    assert found.spread == (pytest.approx(gains.mean()), pytest.approx(gains.std(ddof=1)))
    one = aggregate(*_against(runs[0], "ties")).candidates["sml"].differences["average"]
    assert np.ptp(found.compared.interval) > 1.5 * np.ptp(one.compared.interval)
    assert "± 5.0 [" in markdown(total)
    assert "with 3 seeds, what seeds add to it is 0.82" in markdown(total)


def test_a_cell_of_several_networks_is_their_mean():
    right = answers(ties=0.5, poor=0.4)
    both = {task: torch.stack([right["ties"][task], right["poor"][task]]) for task in SIZES}
    run, found = run_of({**right, "individual": both})
    assert found.fits(run)
    drawn = with_intervals(run, found).candidates
    middle = [np.mean([drawn[name].intervals["dtd"].low for name in ("ties", "poor")])]
    assert drawn["individual"].intervals["dtd"].low == pytest.approx(middle[0], abs=0.01)


def test_an_h_score_has_the_interval_of_the_delta_method():
    """The H-score h = 2ab / (a + b) has the derivatives h²/2a² and h²/2b²."""
    run, found = run_of(answers(ties=0.6, twin=0.6, poor=0.3), out_of_domain=("dtd",))
    for row in with_intervals(run, found).candidates.values():
        a, b = row.accuracy["cars"], row.accuracy["dtd"]
        h = 2 * a * b / (a + b)
        slopes = {"cars": h**2 / 2 / a**2, "dtd": h**2 / 2 / b**2}
        variance = sum(
            slopes[task] ** 2 * p * (1 - p) / SIZES[task] for task, p in row.accuracy.items()
        )
        half = stats.norm.ppf(0.975) * variance**0.5
        assert row.intervals["H-score"] == pytest.approx((h - half, h + half), abs=0.008)
        assert row.intervals["average"] == row.intervals["cars"]
    header, rows, _ = parse(markdown(aggregate([run], "poor", [found])))
    assert header[-2:] == ["above poor, H-score", "p, H-score"]
    assert rows["ties"][-1].endswith(", better")


def test_few_images_are_said():
    right = {"ties": {"cars": torch.arange(29) % 2 > 0, "dtd": torch.arange(30) % 2 > 0}}
    run = with_intervals(*run_of(right))
    assert run.notes == ("Fewer than 30 test examples of cars (29): its interval is rough.",)
    assert run.candidates["ties"].intervals["cars"].low < 0.4


# Runs that cannot have intervals


def _seeds():
    return [run_of(answers(seed, ties=0.5, poor=0.4), seed=seed) for seed in (0, 1)]


def _cut(cells, images):
    return {name: {t: b[0, :images] for t, b in c.items()} for name, c in cells.right.items()}


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (lambda run: (run[0], None), f"the run of seed 1 has no {FILE} beside its results.json"),
        (lambda run: (run[0], _seeds()[0][1]), f"the run of seed 1 has a {FILE} of other accur"),
        (
            lambda run: run_of(answers(1, ties=0.5, poor=0.4), seed=1, digest="other"),
            "the run of seed 1 saw other test examples of cars, dtd than that of seed 0.",
        ),
        (
            lambda run: run_of(_cut(run[1], 150), seed=1),
            "the run of seed 1 saw other test examples of cars, dtd than that of seed 0.",
        ),
    ],
    ids=["older", "stale", "other images", "fewer images"],
)
def test_runs_without_intervals_say_why(second, why):
    first, other = _seeds()
    (one, right), (two, its) = first, second(other)
    total = aggregate([one, two], "poor", [right, its])
    assert total.notes[-1].startswith(f"No intervals: {why}")
    assert markdown(replace(total, notes=())) == markdown(aggregate([one, two], "poor"))
    assert total.candidates["ties"].differences["average"].compared is None


def test_a_verdict_is_that_of_p():
    good = Compared(Interval(0.01, 0.02), 0.001)
    assert good.verdict == "better"
    assert good._replace(interval=Interval(-0.02, -0.01)).verdict == "worse"
    assert good._replace(p=0.06).verdict == ""
