"""Heads that experts published for sequence classification bring along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.errors import InputError
from lightning_merge.data.spec import TaskSpec
from lightning_merge.models.config_files import read_fields
from lightning_merge.models.heads import GELUHead, Head, LinearHead, ReLUHead, TanhHead
from lightning_merge.models.text_encoder import source_folder


class Form(NamedTuple):
    """How a family of networks classifies features.

    Attributes:
        dense: Prefix of the layer in front of the last one; "" if there is none.
        last: Prefix of the last layer.
        head: Class of such heads.
        pooling: Features that they expect.

    Examples:
        >>> FORMS["roberta"].pooling
        'cls'
    """

    dense: str
    last: str
    head: Callable[..., Head]
    pooling: str


_ROBERTA = Form("classifier.dense", "classifier.out_proj", TanhHead, "cls")
_DEBERTA = Form("pooler.dense", "classifier", GELUHead, "cls")
FORMS = {
    "bert": Form("", "classifier", LinearHead, "pooler"),
    "electra": Form("classifier.dense", "classifier.out_proj", GELUHead, "cls"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": _ROBERTA,
    "distilbert": Form("pre_classifier", "classifier", ReLUHead, "cls"),
    "deberta": _DEBERTA,
    "deberta-v2": _DEBERTA,
}
"""Kind of network (`model_type`) -> how `AutoModelForSequenceClassification` classifies."""


def expert_head(source: str, spec: TaskSpec, classes: Sequence[str], pooling: str) -> Head:
    """Return the head in an expert's own file, with logits in the order of the data's classes.

    Args:
        source: Folder or repository of the expert, with config.json and weights.
        spec: Row of its task, which knows other spellings of class names.
        classes: Class names of the data.
        pooling: Features that the encoder makes.

    Raises:
        InputError: The network is of another kind, the file has no head, the head expects other
            features, or `id2label` does not name the data's classes.

    Examples:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
        >>> names = {"id2label": {0: "good", 1: "bad"}}
        >>> config = BertConfig(vocab_size=4, num_hidden_layers=1, **sizes, **names)
        >>> BertForSequenceClassification(config).save_pretrained("films")
        >>> expert_head("films", TaskSpec("films"), ["bad", "good"], "pooler").classes
        ('bad', 'good')
    """
    folder = source_folder("expert", source)
    config = read_fields(folder / "config.json")
    kind = config.get("model_type", None)
    if kind not in FORMS:
        raise InputError(
            f"{folder / 'config.json'}: model_type={kind!r}: heads of experts can be read from "
            f"{', '.join(FORMS)}; let heads be made: zoo.make_heads: class_means"
        )
    form = FORMS[kind]
    if pooling != form.pooling:
        raise InputError(
            f"encoder.pooling={pooling!r}: the heads of {kind} experts expect {form.pooling!r}; "
            f"give --model.encoder.pooling {form.pooling}"
        )
    rows = _rows(folder, spec, classes)
    weight, bias = (tensor[rows] for tensor in _layer(folder, form.last))
    dense = _layer(folder, form.dense) if form.dense else ()
    return form.head(weight, bias, *dense).named(classes)


def _rows(folder: Path, spec: TaskSpec, classes: Sequence[str]) -> list[int]:
    """Return the row of each class of the data in the head of an expert."""
    config = read_fields(folder / "config.json")
    known = config.get("id2label", None) or {}
    names = [str(known[key]) for key in sorted(known, key=int)]
    rows = spec.rows(names, classes)
    if rows is None:
        raise InputError(
            f"{folder / 'config.json'}: id2label names {enumerate_names([*map(repr, names)], 5)}, "
            f"and the data of {spec.name!r} has {enumerate_names([*map(repr, classes)], 5)}; name "
            "the classes there as the data does, in the order of the head's rows"
        )
    return rows


def _layer(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a layer behind the backbone of a checkpoint."""
    checkpoint = open_checkpoint(folder)
    try:
        return checkpoint[f"{prefix}.weight"].float(), checkpoint[f"{prefix}.bias"].float()
    except KeyError:
        raise InputError(
            f"{folder} has no head: {prefix}.weight and {prefix}.bias are missing; let heads be "
            "made: zoo.make_heads: class_means"
        ) from None
