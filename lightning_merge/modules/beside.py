"""Metrics that fields measure beside accuracy."""

from collections.abc import Sequence
from math import isnan, nan

import torch
from torch import Tensor
from torchmetrics.functional import auroc, f1_score, matthews_corrcoef, spearman_corrcoef


def score_of(metric: str, logits: Tensor) -> Tensor:
    """Return what a metric needs to know of each prediction, float [n].

    Args:
        metric: One of `lightning_merge.evaluation.derived.BESIDE`.
        logits: Logits [n, C].

    Examples:
        >>> score_of("auc", torch.tensor([[1.0, 3.0]])), score_of("f1", torch.tensor([[1.0, 3.0]]))
        (tensor([2.]), tensor([1.]))
    """
    if metric == "auc":
        return (logits[:, 1] - logits[:, 0]).float()
    return logits.argmax(1).float()


def beside_accuracy(
    metric: str, scores: Tensor, labels: Tensor, classes: Sequence[str]
) -> float | None:
    """Return a metric of all test examples of a task.

    Args:
        metric: One of `lightning_merge.evaluation.derived.BESIDE`; names of classes are numbers for
            "spearman".
        scores: What `score_of` returned, [n].
        labels: True classes [n].
        classes: Names of the classes.

    Returns:
        None where it is not defined, such as an AUC of a single class.

    Examples:
        >>> predicted, true = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([1, 0, 0, 0])
        >>> round(beside_accuracy("f1", predicted, true, ["no", "yes"]), 3)
        0.667
    """
    labels = labels.long()
    if len(labels.unique()) < 2:
        return None
    if metric == "auc":
        ranks = scores.double().unique(return_inverse=True)[1]  # of large scores sigmoids would tie
        value = auroc(ranks / len(scores), labels, task="binary")
    elif metric == "f1":
        value = f1_score(scores.long(), labels, task="binary")
    elif metric == "matthews":
        value = matthews_corrcoef(
            scores.long(), labels, task="multiclass", num_classes=len(classes)
        )
    else:
        values = torch.tensor([float(name) for name in classes])
        value = spearman_corrcoef(values[scores.long()], values[labels])
    found = nan if value is None else float(value)
    return None if isnan(found) else found
