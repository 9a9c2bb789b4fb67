import math

import pytest
import torch
from scipy import stats
from sklearn import metrics

from lightning_merge.modules.beside import beside_accuracy, measure, metric_of, score_of


@pytest.fixture
def logits():
    return torch.randn(200, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels(logits):
    noise = torch.randn(200, generator=torch.Generator().manual_seed(1))
    return (logits[:, 1] - logits[:, 0] + noise > 0.3).long()


def found(metric, logits, labels, names=("no", "yes")):
    return measure(metric, score_of(metric, logits), labels, names)


def test_metrics_are_those_of_scikit_learn_and_scipy(logits, labels):
    predicted, margin = logits.argmax(1), logits[:, 1] - logits[:, 0]
    assert math.isclose(
        found("f1", logits, labels), metrics.f1_score(labels, predicted), rel_tol=1e-5
    )
    assert math.isclose(
        found("auc", logits, labels), metrics.roc_auc_score(labels, margin), rel_tol=1e-5
    )
    assert math.isclose(
        found("matthews", logits, labels),
        metrics.matthews_corrcoef(labels, predicted),
        rel_tol=1e-5,
    )
    many = torch.randn(200, 5, generator=torch.Generator().manual_seed(2))
    true = (many.argmax(1) + (many[:, 0] > 1)).clamp(max=4)
    names = ["0.0", "0.2", "1.0", "3.0", "5.0"]
    values = torch.tensor([float(name) for name in names])
    expected = stats.spearmanr(values[many.argmax(1)], values[true]).statistic
    assert math.isclose(found("spearman", many, true, names), expected, rel_tol=1e-4)


def test_an_auc_does_not_depend_on_the_threshold(logits, labels):
    for shift in (20.0, 40.0):  # where sigmoids would be 1
        sure = logits + torch.tensor([0.0, shift])
        assert math.isclose(found("auc", sure, labels), found("auc", logits, labels), rel_tol=1e-3)
    moved = logits + torch.tensor([3.0, 0.0])
    assert math.isclose(found("auc", moved, labels), found("auc", logits, labels), rel_tol=1e-5)
    assert not math.isclose(found("f1", moved, labels), found("f1", logits, labels), rel_tol=0.1)


@pytest.mark.parametrize("metric", ["f1", "auc", "matthews"])
def test_one_class_alone_has_no_metric(logits, metric):
    assert found(metric, logits, torch.zeros(200)) is None


@pytest.mark.parametrize(
    ("task", "classes", "metric"),
    [
        ("wikiqa", ["no answer", "answer"], "auc"),
        ("mrpc", ["a", "b", "c"], None),
        ("stsb", ["0.0", "0.2", "5.0"], "spearman"),
        ("stsb", ["low", "high"], None),
        ("cola", ["unacceptable", "acceptable"], "matthews"),
        ("cars", ["a", "b"], None),
    ],
)
def test_a_task_has_a_metric_if_its_classes_allow_it(task, classes, metric):
    assert metric_of(task, classes) == metric
    labels = torch.tensor([0, 1, 1, 0])
    assert bool(beside_accuracy(task, labels.float(), labels, classes)) == (metric is not None)
