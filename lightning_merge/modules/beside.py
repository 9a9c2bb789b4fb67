"""Metrics that fields measure beside accuracy."""

import re
from collections.abc import Mapping, Sequence
from math import isnan, nan

import torch
from torch import Tensor
from torchmetrics.functional import auroc, f1_score, matthews_corrcoef, spearman_corrcoef

from lightning_merge.core.ranks import Ranks
from lightning_merge.data.dataset import Batch
from lightning_merge.data.tasks import task_spec
from lightning_merge.evaluation.derived import BESIDE
from lightning_merge.modules.answers import Answers


class Beside:
    """What is measured beside accuracy in one pass over test examples, from all processes.

    Examples:
        >>> batch = Batch(torch.zeros(2, 4), torch.tensor([0, 1]), torch.tensor([0, 1]))
        >>> beside, classes = Beside(), {"wikiqa": ["no answer", "answer"]}
        >>> beside.add("wikiqa", batch, torch.tensor([[2.0, 0.0], [0.0, 1.0]]), classes["wikiqa"])
        >>> beside.collect(Ranks(), classes)
        {'wikiqa AUC': 1.0}
    """

    def __init__(self) -> None:
        self._scores, self._written = Answers(), Answers()

    def add(
        self,
        task: str,
        batch: Batch,
        logits: Tensor,
        classes: Sequence[str],
        written: Tensor | None = None,
    ) -> None:
        """Add the predictions of one batch; rows behind its last example are left out.

        Args:
            task: Task of the batch.
            batch: The batch, n examples.
            logits: Their logits [n or more, C].
            classes: Names of the classes.
            written: Which answers the network writes, bool like logits; None if it is not asked.
        """
        count, labels = len(batch.index), batch.labels
        if (metric := metric_of(task, classes)) is not None:
            scores = score_of(metric, logits)[:count]
            self._scores.add(task, batch.index, torch.stack([scores, labels.float()]))
        if written is not None:
            right = written[:count].gather(1, labels.unsqueeze(1)).squeeze(1)
            self._written.add(task, batch.index, right)

    def collect(self, ranks: Ranks, classes: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Return the metrics of all examples by column, such as "wikiqa AUC", and forget them.

        Args:
            ranks: The processes, all of which call this.
            classes: Names of the classes by task.
        """
        found: dict[str, float] = {}
        for task, (scores, labels) in self._scores.collect(ranks).items():
            found |= beside_accuracy(task, scores, labels, classes[task])
        for task, right in self._written.collect(ranks).items():
            found[f"{task} {BESIDE['exact match']}"] = float(right.float().mean())
        return found


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


def metric_of(task: str, classes: Sequence[str]) -> str | None:
    """Return what is measured on a task beside accuracy, if anything that its classes allow.

    Args:
        task: Name of the task.
        classes: Names of its classes in the data.

    Examples:
        >>> metric_of("wikiqa", ["no answer", "answer"]), metric_of("mnist", ["0", "1"])
        ('auc', None)
    """
    metric = task_spec(task).metric
    fits = {
        "accuracy": False,
        "f1": len(classes) == 2,
        "auc": len(classes) == 2,
        "spearman": all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in classes),
    }
    return metric if fits.get(metric, True) else None


def beside_accuracy(
    task: str, scores: Tensor, labels: Tensor, classes: Sequence[str]
) -> dict[str, float]:
    """Return what is measured beside accuracy on all test examples of a task, by column.

    Args:
        task: Name of the task.
        scores: What `score_of` returned for its metric, [n].
        labels: True classes [n].
        classes: Names of the classes; numbers for Spearman's correlation.

    Returns:
        Empty where nothing is, or where it is not defined, such as an AUC of a single class.

    Examples:
        >>> predicted, true = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([1, 0, 0, 0])
        >>> beside_accuracy("mrpc", predicted, true, ["not_equivalent", "equivalent"])
        {'mrpc F1': 0.66...}
    """
    metric = metric_of(task, classes)
    value = None if metric is None else measure(metric, scores, labels, classes)
    return {} if metric is None or value is None else {f"{task} {BESIDE[metric]}": value}


def measure(metric: str, scores: Tensor, labels: Tensor, classes: Sequence[str]) -> float | None:
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
        >>> round(measure("f1", predicted, true, ["no", "yes"]), 3)
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
