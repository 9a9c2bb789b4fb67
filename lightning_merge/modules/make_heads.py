"""Make the frozen heads of a zoo from its base, or from prompts."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_merge.core.device import run_device
from lightning_merge.core.errors import InputError
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.data.tasks import task_spec
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.heads import Head, class_mean_head, linear_probe_head
from lightning_merge.modules.inference import outputs
from lightning_merge.modules.zoo import Zoo


def make_heads(
    zoo: Zoo, encoder: Encoder, data: MergeDataModule, tasks: Sequence[str]
) -> Iterator[tuple[str, Head]]:
    """Yield tasks with their heads, made as `zoo.make_heads` says, one after the other.

    Heads from features see the base's features of the train part alone.

    Args:
        zoo: Names the base, the kind of head and the text tower.
        encoder: Architecture of the base; its weights are replaced by the base's.
        data: Where the tasks are, with `preprocess` set.
        tasks: Those to make heads for.
    """
    if zoo.make_heads == "zero_shot":
        from lightning_merge.models.text_heads import zero_shot_heads

        prompts = {task: task_spec(task).prompts(data.classes[task]) for task in tasks}
        text = zoo.text
        try:
            made = zero_shot_heads(prompts, text.name, text.pretrained, text.weights)
        except InputError as fault:
            raise InputError(f"zoo.text: {fault}") from fault
        yield from ((task, head.named(data.classes[task])) for task, head in made.items())
        return
    encoder.load(zoo.base)
    for task in tasks:
        features, labels = base_features(encoder, data, task)
        classes = data.classes[task]
        if zoo.make_heads == "linear_probe":
            yield task, linear_probe_head(features, labels, len(classes), classes=classes)
        else:
            scale = zoo.head_scale
            yield task, class_mean_head(features, labels, len(classes), scale, classes=classes)


def base_features(encoder: Encoder, data: MergeDataModule, task: str) -> tuple[Tensor, Tensor]:
    """Return the features [n, dim] and labels [n] of a task's train images."""
    device = run_device()
    encoder.to(device).eval()
    images = data.images(task, "train")
    batches = images.batches(data.eval_batch_size, f"features of {task} for its head")
    parts = outputs(encoder, encoder.preprocess, batches, device)
    features = torch.cat([part.cpu() for _, part in parts])
    encoder.cpu()
    return features, images.labels
