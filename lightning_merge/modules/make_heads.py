"""Frozen heads of a zoo, made from its base or from prompts."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_merge.core.device import run_device
from lightning_merge.core.errors import InputError
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.data.prompts import prompts
from lightning_merge.data.tasks import task_spec
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.heads import Head, LinearHead, class_mean_head, linear_probe_head
from lightning_merge.models.text_encoder import TextEncoder
from lightning_merge.modules.expert_heads import expert_head
from lightning_merge.modules.inference import outputs
from lightning_merge.modules.zoo import Zoo


def make_heads(
    zoo: Zoo, encoder: Encoder, data: MergeDataModule, tasks: Sequence[str]
) -> Iterator[tuple[str, Head]]:
    """Yield tasks with their heads, one by one, made as `zoo.make_heads` says.

    Heads from features use only the base's features of the train part.

    Args:
        zoo: Base, kind of head and text tower.
        encoder: Architecture of the base; its weights are replaced by the base's.
        data: Data module with the tasks, with `preprocess` set.
        tasks: Tasks to make heads for.

    Raises:
        InputError: A file or the text tower cannot be loaded.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from lightning_merge.core.checkpoints.checkpoint import save_checkpoint
        >>> from lightning_merge.models import MiniViT
        >>> for i in range(8):
        ...     file = Path("pets", "train", ("cat", "dog")[i // 4], f"{i}.png")
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     Image.new("RGB", (8, 8), (i * 20, 0, 0)).save(file)
        >>> encoder, data = MiniViT(depth=1), MergeDataModule(".", tasks=["pets"])
        >>> file = save_checkpoint(encoder.backbone.state_dict(), Path("base.safetensors"))
        >>> data.preprocess = encoder.preprocess
        >>> data.load(test=False)
        >>> zoo = Zoo("base.safetensors", "{task}.safetensors", "heads.safetensors")
        >>> dict(make_heads(zoo, encoder, data, ["pets"]))["pets"].classes
        ('cat', 'dog')
    """
    if encoder.ranks:  # the scores of answers are the logits
        sizes = {task: torch.eye(len(data.classes[task])) for task in tasks}
        yield from ((t, LinearHead(size).named(data.classes[t])) for t, size in sizes.items())
        return
    if zoo.make_heads == "zero_shot":
        from lightning_merge.models.text_heads import zero_shot_heads

        text = zoo.text
        found = {task: prompts(task, data.classes[task], text.prompts) for task in tasks}
        texts = {task: (each.words, each.templates) for task, each in found.items()}
        try:
            made = zero_shot_heads(texts, text.name, text.pretrained, text.weights)
        except InputError as fault:
            raise InputError(f"zoo.text: {fault}") from fault
        yield from ((task, head.named(data.classes[task])) for task, head in made.items())
        return
    if zoo.make_heads == "experts":
        own = [task for task in tasks if task in data.seen]
        yield from ((task, _of_expert(zoo, encoder, data, task)) for task in own)
        tasks = [task for task in tasks if task not in own]
    encoder.load(zoo.base)
    for task in tasks:
        features, labels = base_features(encoder, data, task)
        classes = data.classes[task]
        if zoo.make_heads == "linear_probe":
            yield task, linear_probe_head(features, labels, len(classes), classes=classes)
        else:
            scale = zoo.head_scale
            yield task, class_mean_head(features, labels, len(classes), scale, classes=classes)


def _of_expert(zoo: Zoo, encoder: Encoder, data: MergeDataModule, task: str) -> Head:
    """Return the head that the expert of a task has."""
    if not isinstance(encoder, TextEncoder):
        raise InputError(
            f"zoo.make_heads='experts': {type(encoder).__name__} reads images, whose experts are "
            "published without heads; choose class_means, linear_probe or zero_shot"
        )
    classes = data.classes[task]
    return expert_head(zoo.expert(task), task_spec(task), classes, encoder.backbone.pooling)


def base_features(encoder: Encoder, data: MergeDataModule, task: str) -> tuple[Tensor, Tensor]:
    """Return the features [n, dim] and labels [n] of a task's train images.

    Args:
        encoder: Encoder of the images.
        data: Data module with the task, with `preprocess` set.
        task: Name of the task.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from lightning_merge.models import MiniViT
        >>> for i in range(8):
        ...     file = Path("pets", "train", ("cat", "dog")[i // 4], f"{i}.png")
        ...     file.parent.mkdir(parents=True, exist_ok=True)
        ...     Image.new("RGB", (8, 8), (i * 20, 0, 0)).save(file)
        >>> encoder, data = MiniViT(depth=1), MergeDataModule(".", tasks=["pets"])
        >>> data.preprocess = encoder.preprocess
        >>> features, labels = base_features(encoder, data, "pets")  # a quarter is held out
        >>> features.shape, labels.tolist()
        (torch.Size([6, 192]), [0, 0, 0, 1, 1, 1])
    """
    device = run_device()
    encoder.to(device).eval()
    images = data.inputs(task, "train")
    batches = images.batches(data.eval_batch_size, f"features of {task} for its head")
    parts = outputs(encoder, encoder.preprocess, batches, device)
    found = [(batch.index, part.cpu()) for batch, part in parts]
    encoder.cpu()
    order = torch.cat([index for index, _ in found]).argsort()
    return torch.cat([part for _, part in found])[order], images.labels
