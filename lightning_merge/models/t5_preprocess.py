"""Preprocessing for T5: a prompt and the answers between which the network chooses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_merge.core.errors import InputError
from lightning_merge.models.texts import Texts
from lightning_merge.models.tokenizer import Tokenization, load_tokenizer, vocabulary_of, whole


@dataclass(frozen=True)
class T5Preprocess(Tokenization):
    """Tokenisation of a prompt and its answers into rows of one width, padded at the end.

    Attributes:
        vocabulary: Digest of the tokenizer's tokens and their ids; `of` computes it.
        max_length: Tokens of a prompt or an answer, the end included; longer ones are cut.
        folder: Folder with the files of the tokenizer.

    Examples:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "joy": 3, "good": 4, "bad": 5}
        >>> tokens = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        >>> special = {"pad_token": "<pad>", "eos_token": "</s>"}
        >>> tokens = PreTrainedTokenizerFast(tokenizer_object=tokens, **special)
        >>> _ = tokens.save_pretrained("tiny")
        >>> T5Preprocess.of("tiny", max_length=8).shape(answers=2)
        (3, 8)
    """

    max_length: int = 256

    @classmethod
    def of(cls, folder: str | Path, max_length: int = 256) -> T5Preprocess:
        """Return the preprocessing by the tokenizer in a folder.

        Raises:
            InputError: The folder has no tokenizer that transformers can read, or it does not pad.
        """
        return cls(vocabulary_of(load_tokenizer(folder)), max_length, str(folder))

    def shape(self, parts: int = 1, answers: int = 0) -> tuple[int, ...]:
        """Return [1 + answers, max_length].

        Raises:
            InputError: Examples have no answers.
        """
        if not answers:
            raise InputError(
                "examples without answers: T5 chooses between answers, which tasks of the task "
                "table have; give a task of your own columns prompt and answers in its row"
            )
        return (1 + answers, self.max_length)

    def transform(self) -> TokenizeAnswers:
        """Build the function from `Texts` to ids, int32 [1 + answers, max_length]."""
        return TokenizeAnswers(self)


class TokenizeAnswers:
    """Function from `Texts` to the ids of a `T5Preprocess`: the prompt, then every answer.

    Args:
        preprocess: Tokenizer and width.

    Attributes:
        cut: How many prompts and answers were too long so far.

    Examples:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "joy": 3, "good": 4, "bad": 5}
        >>> tokens = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        >>> special = {"pad_token": "<pad>", "eos_token": "</s>"}
        >>> tokens = PreTrainedTokenizerFast(tokenizer_object=tokens, **special)
        >>> _ = tokens.save_pretrained("tiny")
        >>> tokenize = TokenizeAnswers(T5Preprocess.of("tiny", max_length=4))
        >>> tokenize(Texts(prompt="joy", answers=("good", "bad")))[:, 0]
        tensor([3, 4, 5], dtype=torch.int32)
    """

    def __init__(self, preprocess: T5Preprocess) -> None:
        self.preprocess = preprocess
        self.cut = 0

    def __call__(self, item: Texts) -> Tensor:
        """Return the ids of an example.

        Raises:
            InputError: An answer has no token of its own.
        """
        return torch.stack([self._ids(text) for text in (item.prompt, *item.answers)])

    def _ids(self, text: str) -> Tensor:
        tokenizer, width = self.preprocess.tokenizer, self.preprocess.max_length
        ids = whole(tokenizer, text)
        if not [i for i in ids if i not in tokenizer.all_special_ids]:
            raise InputError(
                f"the answer or prompt {text!r} has no tokens; reword it in the task's row"
            )
        if len(ids) > width:
            self.cut += 1
            ids = [*ids[: width - 1], tokenizer.eos_token_id]
        return self.preprocess.row(ids)
