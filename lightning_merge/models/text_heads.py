"""Zero-shot heads from class names, with the text tower of an open_clip model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_merge.core.errors import InputError
from lightning_merge.core.progress import tracked
from lightning_merge.models.from_open_clip import activation, create_clip, tokenizer
from lightning_merge.models.heads import CosineHead
from lightning_merge.models.loading import load_strict

Prompts = tuple[Sequence[str], Sequence[str]]
"""The class names of a task, and the templates with ``{}`` where a name goes."""


@torch.no_grad()
def zero_shot_head(
    model: Any,
    tokenizer: Callable[[list[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[str],
    scale: float | None = None,
) -> CosineHead:
    """Build a head from text, as in CLIP's zero-shot classification.

    The row of a class is the normalised mean, over templates, of the normalised embeddings of
    its prompts (Radford et al. 2021, section 3.1.4).

    Args:
        model: An open_clip model with ``encode_text`` and ``logit_scale``.
        tokenizer: Maps texts to token indices [texts, context].
        class_names: Names of the C classes; the head has them unless two are equal, as ImageNet's.
        templates: Prompts such as ``a photo of a {}.``
        scale: Factor of the cosines; exp of the model's logit scale if None.

    Raises:
        InputError: There are no classes or templates, or a template has no ``{}``.

    Examples:
        >>> import open_clip
        >>> text = open_clip.CLIPTextCfg(width=16, heads=2, layers=1)
        >>> vision = open_clip.CLIPVisionCfg(layers=1, width=16, head_width=8, image_size=16)
        >>> model = open_clip.CLIP(embed_dim=4, vision_cfg=vision, text_cfg=text)
        >>> words, templates = tokenizer("ViT-B-32"), ["a photo of a {}.", "a {}."]
        >>> head = zero_shot_head(model, words, ["cat", "dog"], templates)
        >>> head.classes, head.weight.shape, round(head.scale.item(), 2)  # 1 / 0.07
        (('cat', 'dog'), torch.Size([2, 4]), 14.29)
    """
    _check_prompts(class_names, templates)
    device = model.logit_scale.device
    texts = [template.format(name) for name in class_names for template in templates]
    chunks = [texts[start : start + 256] for start in range(0, len(texts), 256)]
    rows = torch.cat(
        [
            model.encode_text(tokenizer(c).to(device), normalize=True)
            for c in tracked(chunks, "embedding prompts")
        ]
    )
    means = rows.float().unflatten(0, (len(class_names), len(templates))).mean(dim=1)
    factor = model.logit_scale.float().exp() if scale is None else scale
    head = CosineHead(F.normalize(means, dim=-1), factor)
    return head.named(class_names) if len(set(class_names)) == len(class_names) else head


def zero_shot_heads(
    tasks: Mapping[str, Prompts],
    name: str = "ViT-B-32-quickgelu",
    pretrained: str | None = None,
    weights: str | Path | None = None,
) -> dict[str, CosineHead]:
    """Build the zero-shot heads of several tasks with one text tower.

    Args:
        tasks: Class names and templates of each task.
        name: Model name of open_clip.
        pretrained: Tag of published weights.
        weights: File of the whole model's weights to use instead.

    Raises:
        InputError: See :func:`zero_shot_head` and :class:`OpenClipEncoder`; or neither
            ``pretrained`` nor ``weights`` is given.

    Examples:
        >>> zero_shot_heads({"pets": (["cat", "dog"], ["a photo of a pet."])}, pretrained="openai")
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: templates=['a photo of a pet.']: put {} where
        the name of the class goes
    """
    if pretrained is None and weights is None:
        raise InputError(
            "pretrained=None, weights=None: a zero-shot head needs a trained model; give one"
        )
    for class_names, templates in tasks.values():
        _check_prompts(class_names, templates)
    tower = _text_tower(name, pretrained, weights)
    return {task: zero_shot_head(*tower, *prompts) for task, prompts in tasks.items()}


def _text_tower(name: str, pretrained: str | None, weights: str | Path | None) -> tuple[Any, Any]:
    """Load an open_clip model and its tokenizer."""
    model = create_clip(name, pretrained, download=weights is None)
    if weights is not None:
        own = activation(name, model, settled=pretrained is not None)
        if own is not None:
            own.check(weights)
        try:
            load_strict(model, weights, leave_out="visual.")
        except InputError as fault:
            raise InputError(
                f"weights={weights} has no text tower of {name}, like the pickles published with "
                f"task vectors; give the whole CLIP ({fault})"
            ) from fault
    return model, tokenizer(name)


def _check_prompts(class_names: Sequence[str], templates: Sequence[str]) -> None:
    """Check that prompts can be made.

    Raises:
        InputError: They cannot; names the argument.
    """
    if not class_names or not templates:
        given = f"class_names={list(class_names)}, templates={list(templates)}"
        raise InputError(f"{given}: give at least one of each")
    if wrong := [template for template in templates if "{}" not in template]:
        raise InputError(f"templates={wrong}: put {{}} where the name of the class goes")
    if wrong := [name for name in class_names if name.encode("utf-8", "ignore").decode() != name]:
        raise InputError(
            f"class_names={wrong}: names that are not UTF-8 cannot be put into words; rename "
            "their folders, or make heads in another way"
        )
