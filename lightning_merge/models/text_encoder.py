"""Encoders of text of transformers: BERT, RoBERTa, MiniLM, DistilBERT, DeBERTa, ModernBERT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.checkpoint import Checkpoint, as_checkpoint, open_checkpoint
from lightning_merge.core.checks import require_choice, require_in
from lightning_merge.core.errors import InputError, first_line
from lightning_merge.core.networks.padding import padded
from lightning_merge.models.activation import Activation
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.loading import CheckpointLike
from lightning_merge.models.text_preprocess import Pairs, TextPreprocess
from lightning_merge.models.tokenizer import check_tokenizer

Pooling = Literal["mean", "cls", "pooler"]
_DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"),
    *("embedding_dropout", "mlp_dropout", "pooler_dropout"),
)
"""What networks call the probability of dropout, for states and attention."""
_POOLER = "pooler."
_PRODUCT = 4.0
"""Factor of u * v beside |u - v|, whose entries are larger; not tuned."""


class TextTower(nn.Module):
    """A network of transformers that maps token ids, one tensor, to features.

    Its tensors have the names of the network's own (``embeddings.word_embeddings.weight``). What
    is padding follows from the ids, so neither data nor methods handle masks.

    Args:
        model: An encoder that `AutoModel` returned.
        pad: Id of the padding token.
        pooling: "mean" of the states of all tokens, "cls" for the state of the first one, or
            "pooler" for what the network's own layer makes of it.
        separator: Id of the token between joint pairs, whose second text gets segment 1; None for
            networks without segments.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
        >>> model = BertModel(BertConfig(vocab_size=9, num_hidden_layers=1, **sizes)).eval()
        >>> tower = TextTower(model, pad=0)
        >>> ids = torch.tensor([[2, 5, 3], [2, 3, 0]])
        >>> tower(ids).shape, torch.allclose(tower(ids)[1:], tower(ids[1:, :2]), atol=1e-6)
        (torch.Size([2, 8]), True)
        >>> tower(ids[None]).shape  # a pair of texts
        torch.Size([1, 16])
    """

    _model: Any

    def __init__(
        self, model: Any, pad: int, pooling: Pooling = "mean", separator: int | None = None
    ) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        self.__dict__["_model"] = model  # not a child, which would prefix all names
        self.pad, self.pooling, self.separator = pad, pooling, separator

    def forward(self, ids: Tensor) -> Tensor:
        """Return features [n, dim] of ids [n, L], or [n, 2 dim] of pairs of texts [n, 2, L].

        Features u and v of the texts of a pair are normalised and compared as |u - v| and u * v
        (Conneau et al. 2017, "Supervised Learning of Universal Sentence Representations"), the
        latter four times, so that both have similar norms.
        """
        if ids.ndim == 2:
            return self._encode(ids)
        both = F.normalize(self._encode(ids.flatten(0, 1)), dim=-1).unflatten(0, ids.shape[:2])
        u, v = both.unbind(1)
        return torch.cat([(u - v).abs(), _PRODUCT * u * v], dim=-1)

    def tokens(self, ids: Tensor) -> Tensor:
        """Return which ids are tokens of a text, bool like ids; the first one always is."""
        first = torch.arange(ids.shape[-1], device=ids.device) == 0
        return (ids != self.pad) | first

    def _encode(self, ids: Tensor) -> Tensor:
        """Return features [n, dim] of ids [n, L]."""
        there = self.tokens(ids)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": self._mask(there)}
        if self.separator is not None:
            ends = (ids == self.separator).long()
            inputs["token_type_ids"] = ((ends.cumsum(-1) - ends) > 0).long()
        with padded(there):
            output = self._model(**inputs)
        if self.pooling == "pooler":
            pooled: Tensor = output.pooler_output
            return pooled
        states: Tensor = output.last_hidden_state
        if self.pooling == "cls":
            return states[:, 0]
        weights = there.unsqueeze(-1).to(states)
        return (states * weights).sum(1) / weights.sum(1)

    def _mask(self, there: Tensor) -> Any:
        """Return the attention mask of texts in the form that the network takes.

        Wherever possible it is one bool [n, 1, L, L], because the library's own code for masks
        branches on values, which `torch.func.vmap` cannot follow.
        """
        config, length = self._model.config, there.shape[-1]
        if not takes_whole_masks(config):
            return there.long()
        whole = whole_mask(there, length)
        if (window := getattr(config, "local_attention", None)) is None:
            return whole
        place = torch.arange(length, device=there.device)
        near = (place[:, None] - place).abs() <= window // 2
        return {"full_attention": whole, "sliding_attention": whole & near}


def takes_whole_masks(config: Any) -> bool:
    """Whether a network of transformers takes a mask for every query, which is bool.

    Args:
        config: The network's configuration.

    Examples:
        >>> from transformers import BertConfig
        >>> takes_whole_masks(BertConfig(attn_implementation="eager"))
        False
    """
    import transformers

    new = int(transformers.__version__.partition(".")[0]) >= 5
    return new and config._attn_implementation == "sdpa"


def whole_mask(there: Tensor, queries: int) -> Tensor:
    """Return which tokens each query may look at, bool [n, 1, queries, L].

    Args:
        there: Which positions are tokens, bool [n, L].
        queries: Number of queries.

    Examples:
        >>> whole_mask(torch.tensor([[True, False]]), 3).shape
        torch.Size([1, 1, 3, 2])
    """
    return there[:, None, None, :].expand(-1, 1, queries, -1)


class TextEncoder(Encoder):
    """Encoder of text of transformers: a repository on the Hub, a folder or package:NAME.

    One text becomes one row of features. A pair becomes |u - v| and u * v of its two texts
    (`pairs` "apart"), or one row for both ("joint"). Dropout is off unless it is given.

    Args:
        source: Folder or repository with ``config.json``, weights and a tokenizer.
        pooling: How a text's tokens become its features: "mean" of all, "cls" for the first one, or
            "pooler" for the network's own layer behind the first one.
        max_length: Tokens of a text, special ones included; longer texts are cut, and counted.
        pairs: Whether the two texts of a pair go through the network "apart" or "joint".
        tokenizer: Folder or repository of the tokenizer, if not the source.
        weights: File or folder of weights to use instead of the source's own.
        train_embeddings: Whether embeddings of tokens are trained; they are often half of all
            parameters, and frozen ones have no task vector.
        dropout: Probability that the network drops an activation while it is trained.

    Raises:
        InputError: The source cannot be loaded, has no such pooling, is shorter than `max_length`,
            or the weights fit another architecture.

    Examples:
        >>> from pathlib import Path
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
        >>> words = {"[PAD]": 0, "[UNK]": 1, "a": 2, "joy": 3}
        >>> tokens = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        >>> tokens = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="[PAD]")
        >>> _ = tokens.save_pretrained("tiny")
        >>> sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
        >>> config = BertConfig(vocab_size=4, num_hidden_layers=1, **sizes)
        >>> BertModel(config).save_pretrained("tiny")
        >>> encoder = TextEncoder("tiny", max_length=8)
        >>> encoder(torch.tensor([[2, 3, 0]])).shape, encoder.width([2, 8])  # a text, a pair
        (torch.Size([1, 8]), 16)
    """

    reads = ("source", "tokenizer", "weights")
    library = "transformers"
    backbone: TextTower
    preprocess: TextPreprocess

    def __init__(
        self,
        source: str = "sentence-transformers/all-MiniLM-L6-v2",
        pooling: Pooling = "mean",
        max_length: int = 128,
        pairs: Pairs = "apart",
        tokenizer: str | None = None,
        weights: str | None = None,
        train_embeddings: bool = False,
        dropout: float = 0.0,
    ) -> None:
        require_choice(("mean", "cls", "pooler"), pooling=pooling)
        require_in("[0, 1)", dropout=dropout)
        folder = source_folder("source", source)
        own = folder if tokenizer is None else source_folder("tokenizer", tokenizer)
        preprocess = TextPreprocess.of(own, max_length, pairs)
        model = _model(folder, dropout)
        _check_length(model.config, max_length)
        _check_pooling(model, pooling)
        stored = folder if weights is None else Path(weights)
        if pooling != "pooler" and getattr(model, "pooler", None) is not None:
            model.pooler.requires_grad_(False)  # no feature depends on it
            if not _has_pooler(open_checkpoint(stored)):
                model.pooler = None
        words = preprocess.tokenizer
        if (rows := model.get_input_embeddings().num_embeddings) < len(words):
            raise InputError(
                f"tokenizer={str(own)!r} has {len(words)} tokens, and the network {rows}: give the "
                "tokenizer of the network"
            )
        segments = pairs == "joint" and getattr(model.config, "type_vocab_size", 0) > 1
        separator = words.sep_token_id if segments else None
        tower = TextTower(model, words.pad_token_id, pooling, separator)
        super().__init__(tower, preprocess, model.config.hidden_size)
        model.get_input_embeddings().requires_grad_(train_embeddings)
        if (kind := getattr(model.config, "hidden_act", None)) is not None:
            self.activation = Activation(kind, f"source={source}")
        self.load(stored)

    def fitting(self, source: CheckpointLike) -> Checkpoint:
        """Return the weights that `load` would load.

        An expert published without a pooler, on which no feature depends, gets the encoder's.

        Raises:
            InputError: See `Encoder.load`, or the tokenizer beside the weights is another one.
        """
        if isinstance(source, Mapping):
            checkpoint = as_checkpoint(source)
        else:
            check_tokenizer(source, self.preprocess)
            checkpoint = open_checkpoint(source)
        named = self.backbone.state_dict().items()
        own = {name: tensor for name, tensor in named if name.startswith(_POOLER)}
        if own and self.backbone.pooling != "pooler" and not _has_pooler(checkpoint):
            known = next((name for name in checkpoint if "embeddings." in name), "")
            prefix = known.partition("embeddings.")[0]
            spare = {f"{prefix}{name}": tensor.clone() for name, tensor in own.items()}
            checkpoint = checkpoint.joined(as_checkpoint(spare))
        return super().fitting(checkpoint)

    @property
    def features_of(self) -> str:
        """What features depend on besides weights: tokens, their number, pooling."""
        return f"{self.preprocess!r}, pooling={self.backbone.pooling!r}"

    def width(self, shape: Sequence[int]) -> int:
        """Return the width of the features of one text, or twice that of a pair kept apart."""
        return self.dim * (2 if len(shape) == 2 else 1)


def source_folder(argument: str, source: str) -> Path:
    """Return the local folder of a source, downloading a repository if needed.

    Args:
        argument: Name of the option, for messages.
        source: Folder, repository or package:NAME.

    Raises:
        InputError: It is none of them.

    Examples:
        >>> source_folder("source", "no/such/folder/here")
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: source='no/such/folder/here' is not a folder; ...
    """
    try:
        found = hub.local(source)
    except InputError as fault:
        raise InputError(f"{argument}={source!r}: {fault}") from fault
    folder = found.parent if found.is_file() else found
    if not folder.is_dir():
        raise InputError(
            f"{argument}={source!r} is not a folder; give one with config.json, weights and a "
            "tokenizer, or the name of a repository on the Hub"
        )
    return folder


def _model(folder: Path, dropout: float) -> Any:
    """Return the untrained network of a folder's config.json."""
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        for name in _DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, dropout)
        model = AutoModel.from_config(config).float()
    except Exception as fault:  # transformers raises many kinds
        raise InputError(
            f"source={str(folder)!r} is not a network that transformers can build "
            f"({first_line(fault)}); give the folder of an encoder of text"
        ) from None
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise InputError(
            f"source={str(folder)!r} is a {config.model_type}, not an encoder of text; give T5 to "
            "T5Encoder"
        )
    return model


def _has_pooler(checkpoint: Checkpoint) -> bool:
    return any(name.startswith(_POOLER) or f".{_POOLER}" in name for name in checkpoint)


def _check_length(config: Any, max_length: int) -> None:
    """Raise InputError for texts longer than the network's positions."""
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        most -= config.pad_token_id + 1  # their positions start behind that of the padding
    if most is not None and max_length > most:
        raise InputError(f"max_length={max_length}: the network takes {most} tokens at most")


def _check_pooling(model: Any, pooling: str) -> None:
    """Raise InputError for a layer that the network does not have."""
    if pooling == "pooler" and getattr(model, "pooler", None) is None:
        raise InputError(
            f"pooling='pooler': {type(model).__name__} has no such layer; give cls or mean"
        )
