"""Tokenizers of transformers, and what all preprocessing of texts shares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.names import enumerate_names
from lightning_merge.core.checks import require_in
from lightning_merge.core.errors import InputError, first_line
from lightning_merge.models.preprocess import Preprocess

_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class Tokenization(Preprocess):
    """What preprocessing of texts does whatever the network: ids of a fixed width, padded.

    Attributes:
        vocabulary: Digest of the tokenizer's tokens and their ids, see `vocabulary_of`.
        max_length: Tokens of a text, special ones included; longer texts are cut.
        folder: Folder with the files of the tokenizer.

    Examples:
        >>> from lightning_merge.models import TextPreprocess
        >>> isinstance(TextPreprocess("digest of a vocabulary"), Tokenization)
        True
    """

    kind: ClassVar[str] = "texts"
    dtype: ClassVar[torch.dtype] = torch.int32

    vocabulary: str
    max_length: int
    folder: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        require_in("[4, inf)", max_length=self.max_length)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        return load_tokenizer(self.folder)

    def finish(self, batch: Tensor) -> Tensor:
        """Return the ids as int64."""
        return batch.long()

    def trim(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """Cut ids [n, ..., width] to the longest text in any of the batches."""
        return cut_texts(self.tokenizer.pad_token_id, batches)

    def remark(self, transforms: Mapping[str, Any]) -> str:
        """Say how many texts were cut."""
        cut = {name: made.cut for name, made in transforms.items() if made.cut}
        names = [f"{count} of {name}" for name, count in cut.items()]
        return (
            f"{sum(cut.values())} texts have more than max_length={self.max_length} tokens and are "
            f"cut: {enumerate_names(names, 12)}"
            if cut
            else ""
        )

    def row(self, ids: Sequence[int]) -> Tensor:
        """Return ids, no more than `max_length`, with padding behind them, int32 [max_length]."""
        row = torch.full((self.max_length,), self.tokenizer.pad_token_id, dtype=torch.int32)
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int32)
        return row


def whole(tokenizer: Any, *texts: str) -> list[int]:
    """Return all ids of one text or a joint pair, whatever truncation a file asks for.

    Args:
        tokenizer: Tokenizer of transformers.
        texts: One text or two.

    Examples:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> tokens = Tokenizer(models.WordLevel({"[UNK]": 0, "joy": 1}, unk_token="[UNK]"))
        >>> whole(PreTrainedTokenizerFast(tokenizer_object=tokens), "joy")
        [1]
    """
    if (fast := getattr(tokenizer, "backend_tokenizer", None)) is None:
        ids: list[int] = tokenizer(*texts, verbose=False)["input_ids"]
        return ids
    fast.no_truncation()  # which the file may ask for, or the last call
    fast.no_padding()
    found: list[int] = fast.encode(*texts).ids
    return found


def cut_texts(pad: int, batches: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Cut ids [n, ..., width] to the longest text in any of some batches.

    Args:
        pad: Id of the padding token.
        batches: The ids.

    Examples:
        >>> one, two = torch.tensor([[5, 0, 0, 0]]), torch.tensor([[5, 6, 0, 0]])
        >>> [batch.tolist() for batch in cut_texts(0, [one, two])]
        [[[5, 0]], [[5, 6]]]
    """
    used = [(batch != pad).flatten(0, -2).any(0).nonzero() for batch in batches]
    width = max([1, *(int(own[-1]) + 1 for own in used if len(own))])
    return tuple(batch[..., :width] for batch in batches)


def load_tokenizer(folder: str | Path) -> Any:
    """Return the tokenizer in a folder.

    Raises:
        InputError: There is none that transformers can read, or it has no token to pad with.

    Examples:
        >>> load_tokenizer("nowhere")
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: tokenizer='nowhere' has no tokenizer that ...
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as fault:  # transformers raises many kinds
        raise InputError(
            f"tokenizer={str(folder)!r} has no tokenizer that transformers can read "
            f"({first_line(fault)}); give a folder with tokenizer.json, or with the vocabulary of "
            "its kind"
        ) from None
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"tokenizer={str(folder)!r} has no padding token; set pad_token in its "
            "tokenizer_config.json"
        )
    return tokenizer


def check_tokenizer(source: str | Path, preprocess: Tokenization) -> None:
    """Check that the tokenizer beside some weights, if there is one, is the encoder's.

    Args:
        source: Checkpoint file or folder.
        preprocess: Preprocessing of the encoder.

    Raises:
        InputError: It has other tokens, or other ids for them.

    Examples:
        >>> from lightning_merge.models import TextPreprocess
        >>> check_tokenizer("weights.safetensors", TextPreprocess("abc"))  # nothing lies beside it
    """
    place = hub.local(source)
    folder = place if place.is_dir() else place.parent
    there = [folder / name for name in _FILES if (folder / name).is_file()]
    if not there:
        return
    digest, tokens = _known(str(folder.resolve()), max(f.stat().st_mtime_ns for f in there))
    if digest == preprocess.vocabulary:
        return
    own = set(preprocess.tokenizer.get_vocab())
    kinds = {"it adds": sorted(tokens - own), "it lacks": sorted(own - tokens)}
    differing = [f"{verb} {enumerate_names([*map(repr, t)], 5)}" for verb, t in kinds.items() if t]
    raise InputError(
        f"weights={source}: the tokenizer beside them is not the encoder's: "
        f"{' and '.join(differing) or 'it has other ids or rules'}. Rows of the embeddings would "
        "stand for other tokens; merge experts that have the tokens of their base"
    )


@lru_cache(maxsize=64)
def _known(folder: str, changed: int) -> tuple[str, frozenset[str]]:
    """Return the digest and the tokens of the tokenizer in a folder that changed at some time."""
    tokenizer = load_tokenizer(folder)
    return vocabulary_of(tokenizer), frozenset(tokenizer.get_vocab())


def vocabulary_of(tokenizer: Any) -> str:
    """Return a digest of a tokenizer's tokens, ids and rules, whatever files they are in.

    Examples:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> tokens = Tokenizer(models.WordLevel({"[UNK]": 0, "joy": 1}, unk_token="[UNK]"))
        >>> len(vocabulary_of(PreTrainedTokenizerFast(tokenizer_object=tokens)))
        64
    """
    special = [tokenizer.pad_token_id, *tokenizer.all_special_ids, tokenizer.truncation_side]
    if (fast := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        rules = json.loads(fast.to_str())
        rules.pop("truncation", None)  # which a call sets
        rules.pop("padding", None)
    else:
        rules = sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0]))
    return hashlib.sha256(json.dumps([rules, special], sort_keys=True).encode()).hexdigest()
