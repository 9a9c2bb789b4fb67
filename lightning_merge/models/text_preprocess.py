"""Preprocessing of an encoder's texts: tokenisation, once per text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lightning_merge.core.checks import require_choice
from lightning_merge.core.errors import InputError
from lightning_merge.models.texts import Texts
from lightning_merge.models.tokenizer import Tokenization, load_tokenizer, vocabulary_of, whole

Pairs = Literal["apart", "joint"]


@dataclass(frozen=True)
class TextPreprocess(Tokenization):
    """Tokenisation of texts into ids of a fixed width, padded at the end.

    Attributes:
        vocabulary: Digest of the tokenizer's tokens and their ids; `of` computes it.
        max_length: Tokens of a text, special ones included; longer texts are cut.
        pairs: "apart" keeps the two texts of a pair in rows of their own, [2, max_length]; "joint"
            has both in one row, with the tokenizer's separator between them.
        folder: Folder with the files of the tokenizer.

    Examples:
        >>> Path("tiny").mkdir()
        >>> tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "joy"]
        >>> _ = Path("tiny/vocab.txt").write_text("".join(f"{token}{chr(10)}" for token in tokens))
        >>> _ = Path("tiny/config.json").write_text('{"model_type": "bert"}')
        >>> preprocess = TextPreprocess.of("tiny", max_length=6)
        >>> preprocess.transform()(Texts(("A joy",)))
        tensor([2, 5, 6, 3, 0, 0], dtype=torch.int32)
    """

    max_length: int = 128
    pairs: Pairs = "apart"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(("apart", "joint"), pairs=self.pairs)

    @classmethod
    def of(
        cls, folder: str | Path, max_length: int = 128, pairs: Pairs = "apart"
    ) -> TextPreprocess:
        """Return the preprocessing by the tokenizer in a folder.

        Raises:
            InputError: The folder has no tokenizer that transformers can read, or it does not pad.
        """
        return cls(vocabulary_of(load_tokenizer(folder)), max_length, str(folder), pairs)

    def shape(self, parts: int = 1, answers: int = 0) -> tuple[int, ...]:
        """Return [max_length], or [2, max_length] for pairs that are kept apart.

        Raises:
            InputError: Examples have no text of their own, or more than two.
        """
        if parts not in (1, 2):
            raise InputError(
                f"examples of {parts} texts: this encoder takes one text or two; tasks whose "
                "answers differ from example to example need T5Encoder"
            )
        apart = parts == 2 and self.pairs == "apart"
        return (2, self.max_length) if apart else (self.max_length,)

    def transform(self) -> Tokenize:
        """Build the function from `Texts` to ids, int32 [max_length] or [2, max_length]."""
        return Tokenize(self)


class Tokenize:
    """Function from `Texts` to the ids of a `TextPreprocess`.

    Args:
        preprocess: Tokenizer and width.

    Attributes:
        cut: How many texts were too long so far.

    Examples:
        >>> from pathlib import Path
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = {"[PAD]": 0, "[UNK]": 1, "a": 2, "joy": 3}
        >>> tokens = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        >>> tokens = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="[PAD]")
        >>> _ = tokens.save_pretrained("tiny")
        >>> tokenize = Tokenize(TextPreprocess.of("tiny", max_length=4))
        >>> tokenize(Texts(("joy",)))
        tensor([3, 0, 0, 0], dtype=torch.int32)
    """

    def __init__(self, preprocess: TextPreprocess) -> None:
        self.preprocess = preprocess
        self.cut = 0

    def __call__(self, item: Texts) -> Tensor:
        """Return the ids of an example."""
        shape = self.preprocess.shape(len(item.texts))
        if len(shape) == 2:
            return torch.stack([self._ids(text) for text in item.texts])
        return self._ids(*item.texts)

    def _ids(self, *texts: str) -> Tensor:
        """Return the ids of one text or a joint pair, padded or cut."""
        tokenizer, width = self.preprocess.tokenizer, self.preprocess.max_length
        ids = whole(tokenizer, *texts)
        if len(ids) > width:
            self.cut += 1
            ids = tokenizer(*texts, truncation=True, max_length=width)["input_ids"]
        return self.preprocess.row(ids)
