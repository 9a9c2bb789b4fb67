"""Make the frozen heads of a zoo from its base, or from prompts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_merge.core.device import run_device
from lightning_merge.core.errors import InputError
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.data.tasks import task_spec
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.heads import Head, class_mean_head, linear_probe_head
from lightning_merge.modules.zoo import Zoo


def make_heads(
    zoo: Zoo, encoder: Encoder, data: MergeDataModule, tasks: Sequence[str]
) -> dict[str, Head]:
    """Return one head for each of some tasks, as `zoo.make_heads` says.

    Heads from features see the base's features of the train part alone.

    Args:
        zoo: names the base, the kind of head and the text tower.
        encoder: architecture of the base; its weights are replaced by the base's.
        data: where the tasks are, with `preprocess` set.
        tasks: those to make heads for.
    """
    if zoo.make_heads == "zero_shot":
        from lightning_merge.models.text_heads import zero_shot_heads

        prompts = {task: task_spec(task).prompts(data.classes[task]) for task in tasks}
        text = zoo.text
        try:
            made = zero_shot_heads(prompts, text.name, text.pretrained, text.weights)
        except InputError as fault:
            raise InputError(f"zoo.text: {fault}") from fault
        return {task: head.named(data.classes[task]) for task, head in made.items()}
    encoder.load(zoo.base)
    heads: dict[str, Head] = {}
    for task in tasks:
        features, labels = base_features(encoder, data, task)
        classes = data.classes[task]
        if zoo.make_heads == "linear_probe":
            heads[task] = linear_probe_head(features, labels, len(classes), classes=classes)
        else:
            heads[task] = class_mean_head(
                features, labels, len(classes), zoo.head_scale, classes=classes
            )
    return heads


@torch.no_grad()
def base_features(encoder: Encoder, data: MergeDataModule, task: str) -> tuple[Tensor, Tensor]:
    """Return the features [n, dim] and labels [n] of a task's train images."""
    device = run_device()
    encoder.to(device).eval()
    images = data.images(task, "train")
    features = []
    for start in range(0, len(images), data.eval_batch_size):
        stop = min(start + data.eval_batch_size, len(images))
        batch = images.__getitems__(list(range(start, stop)))
        normal = encoder.preprocess.normalize(batch.images.to(device))
        features.append(encoder(normal).float().cpu())
    encoder.cpu()
    return torch.cat(features), images.labels
