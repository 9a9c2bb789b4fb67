"""The study of M-Loss: its rank statistics against scipy and by hand, its measurements by hand."""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import mergeability_study as study
from tiny_zoo import *  # noqa: F403
from tiny_zoo import ENCODER, TASKS

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.methods import TaskArithmetic
from lightning_merge.models import MiniViT, load_heads


def symmetric(count, seed, levels=None):
    generator = np.random.default_rng(seed)
    values = generator.random((count, count))
    values = values if levels is None else np.floor(values * levels)
    return np.triu(values, 1) + np.triu(values, 1).T


@pytest.mark.parametrize("levels", [None, 4])
def test_rank_statistics(levels):
    stats = pytest.importorskip("scipy.stats")
    x, y = (study.upper(symmetric(8, seed, levels)) for seed in (0, 1))
    assert study.ranks(x).tolist() == (stats.rankdata(x) - 1).tolist()
    assert study.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert study.kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)


def test_rank_correlation_of_a_constant_is_undefined():
    assert np.isnan(study.spearman(np.ones(4), np.arange(4.0)))
    assert np.isnan(study.kendall(np.ones(4), np.arange(4.0)))


def test_partial_correlation_is_that_of_residuals():
    x, y, z = (np.random.default_rng(seed).random(30) for seed in range(3))
    x, y = x + z, y - z
    a, b, c = (study.ranks(values) for values in (x, y, z))
    line = np.stack([c, np.ones(30)], 1)
    left = [v - line @ np.linalg.lstsq(line, v, rcond=None)[0] for v in (a, b)]
    assert study.partial_spearman(x, y, z) == pytest.approx(np.corrcoef(*left)[0, 1])


def test_interaction_is_the_residual_of_least_squares():
    pairs = list(itertools.combinations(range(6), 2))
    matrix = symmetric(6, 0)
    design = np.array([[float(k in pair) for k in range(6)] for pair in pairs])
    values = study.upper(matrix)
    left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    assert study.upper(study.interaction(matrix)) == pytest.approx(left)


def test_sums_of_two_have_no_interaction():
    sizes = np.random.default_rng(0).random(8)
    left = study.interaction(sizes[:, None] + sizes)
    assert not study.upper(left).any()
    assert np.isnan(study.chance(left, symmetric(8, 0), study.spearman, 10))


def test_chance_counts_renamings():
    """Of four experts, 24 renamings: with enough draws their exact share."""
    x, y = symmetric(4, 0), symmetric(4, 1)
    found = abs(study.spearman(study.upper(x), study.upper(y)))
    orders = [np.array(order) for order in itertools.permutations(range(4))]
    shares = [
        abs(study.spearman(study.upper(x[np.ix_(o, o)]), study.upper(y))) >= found - 1e-12
        for o in orders
    ]
    p = study.chance(x, y, study.spearman, 4000)
    assert p == pytest.approx(np.mean(shares), abs=0.03)
    assert study.chance(*[symmetric(8, 0)] * 2, study.spearman, 300) == pytest.approx(1 / 301)


def test_intervals_hold_the_certain_and_the_uncertain():
    x = symmetric(8, 0)
    assert study.interval(x, x, study.spearman, 50) == pytest.approx((1, 1))
    low, high = study.interval(x, symmetric(8, 1), study.spearman, 200)
    assert -1 <= low < study.spearman(study.upper(x), study.upper(symmetric(8, 1))) < high <= 1


def test_table_and_sentence_name_every_predictor():
    names = ("M-Loss", "distance of the weights", "length")
    lost, found = symmetric(8, 0), {name: symmetric(8, i) for i, name in enumerate(names)}
    rows = study.rows(found, lost, 50)
    assert [row[0] for row in rows] == list(names)
    assert {len(row) for row in rows} == {len(study.HEADER)}
    assert rows[0][1] == rows[0][4] == rows[0][7] == "+1.00"
    said = study.sentence("average", found, lost, 50)
    assert "+1.00" in said
    assert "is told apart from chance (p = 0.020)" in said
    against = {**found, "M-Loss": symmetric(8, 1)}
    assert "is not told apart" in study.sentence("average", against, lost, 50)


def test_what_a_pair_loses(files, data):
    encoder = MiniViT(**ENCODER)
    data.preprocess = encoder.preprocess
    data.load()
    base = open_checkpoint(files.base)
    experts = {task: open_checkpoint(file) for task, file in files.expert.items()}
    suite = study.Suite(base, experts, encoder, load_heads(files.heads), data)
    method = TaskArithmetic(scale=0.3)
    merged, gone = MiniViT(**ENCODER).load(method(base, experts)), 0.0
    for task in TASKS:
        images = data.inputs(task, "test")
        batch = images[list(range(len(images)))]
        head, normal = suite.heads[task], encoder.preprocess.finish(batch.inputs)
        right = [
            (head(net(normal)).argmax(1) == batch.labels).sum().item()
            for net in (MiniViT(**ENCODER).load(experts[task]), merged)
        ]
        assert suite.accuracy(experts[task], task) == pytest.approx(100 * right[0] / len(images))
        gone += 100 * (right[0] - right[1]) / len(images) / 2
    individual = {task: suite.accuracy(expert, task) for task, expert in experts.items()}
    lost = suite.lost(method, individual)
    assert lost[0, 1] == lost[1, 0] == pytest.approx(gone)

    found = study.predictors(suite)
    assert all(values.shape == (2, 2) for values in found.values())
    flat = [
        torch.cat([(experts[task][name] - base[name]).flatten() for name in base]).double()
        for task in TASKS
    ]
    distance, lengths = (flat[0] - flat[1]).norm(), flat[0].norm() + flat[1].norm()
    cosine = torch.cosine_similarity(*flat, dim=0)
    assert found["distance of the weights"][0, 1] == pytest.approx(distance.item())
    assert found["length of both task vectors"][0, 1] == pytest.approx(lengths.item())
    assert found["- cosine of the task vectors"][0, 1] == pytest.approx(-cosine.item(), rel=1e-5)
    m_loss = suite.m_loss(TASKS).overall  # the only pair: the same pass
    assert found["M-Loss, one pass for all pairs"][0, 1] == pytest.approx(m_loss)
    assert found["M-Loss, a pass per pair on its tasks"][0, 1] == pytest.approx(m_loss)


def test_all_images_give_every_draw_the_same_ranks(files, root, tmp_path):
    """Opened as a config names it; fewer images leave something to chance."""
    encoder = {"class_path": "lightning_merge.models.MiniViT", "init_args": ENCODER}
    zoo = {"base": files.base, "experts": files.experts, "heads": files.heads}
    model = {"class_path": "lightning_merge.modules.AdaMerging"}
    model["init_args"] = {"encoder": encoder, "zoo": zoo}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"model": model, "data": {"tasks": list(TASKS)}}))
    given = argparse.Namespace(
        config=str(config), data_root=str(root), unlabelled=4, options=["--trainer.accelerator=cpu"]
    )
    suite = study.open_suite(given)
    assert list(suite.experts) == list(TASKS)
    assert suite.data.unlabelled_inputs == 4
    few, everything = study.stability(suite, [4, 1000], seeds=[0, 1, 2])
    assert everything[0] == "1000"
    assert everything[1].endswith("± 0.0000")
    assert everything[2:] == ["1.000 (1.000)", "1.000 (1.000)"]
    assert few[2] < everything[2]
