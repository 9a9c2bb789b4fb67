"""T5 and flan-T5 as classifiers: the answer that the network finds most likely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_merge.core.checkpoints.checkpoint import Checkpoint, as_checkpoint, open_checkpoint
from lightning_merge.core.checkpoints.equality import same_bits
from lightning_merge.core.checks import require_in
from lightning_merge.core.errors import InputError, first_line
from lightning_merge.core.networks.padding import padded
from lightning_merge.models.encoder import Encoder
from lightning_merge.models.loading import CheckpointLike
from lightning_merge.models.t5_preprocess import T5Preprocess
from lightning_merge.models.text_encoder import source_folder, takes_whole_masks, whole_mask
from lightning_merge.models.tokenizer import check_tokenizer

UNUSED = "EncDecAttention.relative_attention_bias.weight"
"""In files of the first T5s, where no network has a place for it."""


class AnswerRanks(nn.Module):
    """A T5 that maps a prompt and its answers, one tensor, to the answers' log-likelihoods.

    Its tensors have the names of ``T5ForConditionalGeneration``, each tied one once: embeddings are
    ``shared.weight``, and a first T5's output layer is that, too.

    Args:
        model: The network.
        mean: Divide the log-likelihood of an answer by the number of its tokens.
        tied: Whether the output layer is that of the embeddings, as in the first T5; v1.1 and
            flan-T5 have one of their own.

    Examples:
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        >>> config = T5Config(vocab_size=9, decoder_start_token_id=0, **sizes)
        >>> ranks = AnswerRanks(T5ForConditionalGeneration(config).eval())
        >>> prompt, yes, no = [4, 5, 1], [6, 1, 0], [7, 1, 0]
        >>> ranks(torch.tensor([[prompt, yes, no]])).shape
        torch.Size([1, 2])
    """

    def __init__(self, model: Any, mean: bool = False, tied: bool = True) -> None:
        super().__init__()
        config = model.config
        self.shared, self.encoder, self.decoder = model.shared, model.encoder, model.decoder
        for stack in (self.encoder, self.decoder):  # embeddings have one name
            del stack._modules["embed_tokens"]
            stack.__dict__["embed_tokens"] = self.shared
        self.tied, self.mean, self._writes = tied, mean, False
        if not tied:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.pad, self.start = config.pad_token_id, config.decoder_start_token_id
        scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
        self.factor = config.d_model**-0.5 if scaled else 1.0

    def forward(self, ids: Tensor) -> Tensor:
        """Return log-likelihoods [n, C] of the answers in ids [n, 1 + C, L], row 0 the prompt."""
        scores, answers = self._scores(ids)
        said = self.tokens(answers)
        if self._writes:
            return ((scores.argmax(-1) == answers) | ~said).all(-1)
        own = scores.gather(-1, answers.unsqueeze(-1)).squeeze(-1)
        total = (own * said).sum(-1)
        return total / said.sum(-1) if self.mean else total

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Let the network say instead which answers it writes, bool [n, C].

        Greedy decoding writes an answer if each of its tokens, the end included, is the likeliest
        one behind those before it, which one pass over the answers shows. A row without any is a
        prompt to which the network writes something else.
        """
        self._writes = True
        try:
            yield
        finally:
            self._writes = False

    def _scores(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities [n, C, L, words] behind each token of answers [n, C, L]."""
        prompt, every = ids[:, 0], self._cut(ids[:, 1:])
        choices = every.shape[1]
        there = self.tokens(prompt)
        with padded(there):
            mask = self._mask(there, there.shape[-1])
            states = self.encoder(input_ids=prompt, attention_mask=mask).last_hidden_state
        answers = every.flatten(0, 1)
        states, there = (t.repeat_interleave(choices, 0) for t in (states, there))
        begin = answers.new_full((len(answers), 1), self.start)
        with padded(self.tokens(answers), there):
            output = self.decoder(
                input_ids=torch.cat([begin, answers[:, :-1]], 1),
                encoder_hidden_states=states,
                attention_mask=self._earlier(answers),
                encoder_attention_mask=self._mask(there, answers.shape[-1]),
                use_cache=False,
            ).last_hidden_state
        weight = self.shared.weight if self.tied else self.lm_head.weight
        with torch.autocast(output.device.type, enabled=False):  # bfloat16 would make answers tie
            scores = F.linear(output.float() * self.factor, weight.float()).log_softmax(-1)
        return scores.unflatten(0, every.shape[:2]), every

    def tokens(self, ids: Tensor) -> Tensor:
        """Return which ids are tokens of a text, bool like ids; the first one always is."""
        first = torch.arange(ids.shape[-1], device=ids.device) == 0
        return (ids != self.pad) | first

    def _mask(self, there: Tensor, queries: int) -> Tensor:
        """Return the mask of a prompt, in a form that `torch.func.vmap` can follow if possible."""
        whole = takes_whole_masks(self.encoder.config)
        return whole_mask(there, queries) if whole else there.long()

    def _earlier(self, answers: Tensor) -> Tensor | None:
        """Return which tokens of an answer each one may look at; None if the library does."""
        if not takes_whole_masks(self.decoder.config):
            return None
        length = answers.shape[-1]
        below = torch.ones(length, length, dtype=torch.bool, device=answers.device).tril()
        return below.expand(len(answers), 1, -1, -1)

    def _cut(self, answers: Tensor) -> Tensor:
        """Return answers without the padding that they share with prompts."""
        if torch._C._functorch.is_batchedtensor(answers):  # shapes cannot depend on values there
            return answers
        used = (answers != self.pad).flatten(0, 1).any(0).nonzero()
        return answers[..., : int(used[-1]) + 1] if len(used) else answers[..., :1]


class T5Encoder(Encoder):
    """T5 or flan-T5, whose "features" are the log-likelihoods of the answers to a prompt.

    The class of an example is the answer that the network finds most likely (rank classification),
    so heads have no weights. Prompts and answers are in the task table.

    Args:
        source: Folder, repository or package:NAME with ``config.json``, weights and a tokenizer.
        max_length: Tokens of a prompt or an answer; longer ones are cut, and counted.
        length_normalized: Divide the log-likelihood of an answer by the number of its tokens, which
            published protocols do not.
        exact_match: Measure on test prompts also how often the network writes exactly the right
            answer, one likeliest token after another, as is done for published flan-T5. It takes a
            second pass over them; networks of several experts have no such figure.
        tokenizer: Folder or repository of the tokenizer, if not the source.
        weights: File or folder of weights to use instead of the source's own.
        train_embeddings: Whether embeddings of tokens are trained.
        dropout: Probability that the network drops an activation while it is trained.

    Raises:
        InputError: The source cannot be loaded or is not a T5, or the weights do not fit.

    Examples:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
        >>> words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "joy": 3, "good": 4, "bad": 5}
        >>> tokens = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        >>> special = {"pad_token": "<pad>", "eos_token": "</s>"}
        >>> tokens = PreTrainedTokenizerFast(tokenizer_object=tokens, **special)
        >>> _ = tokens.save_pretrained("tiny")
        >>> sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        >>> config = T5Config(vocab_size=6, decoder_start_token_id=0, **sizes)
        >>> T5ForConditionalGeneration(config).save_pretrained("tiny")
        >>> encoder = T5Encoder("tiny", max_length=8)
        >>> encoder(torch.tensor([[[3, 0], [4, 0], [5, 0]]])).shape  # joy: good or bad?
        torch.Size([1, 2])
    """

    reads = ("source", "tokenizer", "weights")
    library = "transformers"
    ranks = True
    backbone: AnswerRanks
    preprocess: T5Preprocess

    def __init__(
        self,
        source: str = "google/flan-t5-base",
        max_length: int = 256,
        length_normalized: bool = False,
        exact_match: bool = False,
        tokenizer: str | None = None,
        weights: str | None = None,
        train_embeddings: bool = True,
        dropout: float = 0.0,
    ) -> None:
        require_in("[0, 1)", dropout=dropout)
        folder = source_folder("source", source)
        own = folder if tokenizer is None else source_folder("tokenizer", tokenizer)
        preprocess = T5Preprocess.of(own, max_length)
        model = _t5(folder, dropout)
        words = preprocess.tokenizer
        if (rows := model.shared.num_embeddings) < len(words):
            raise InputError(
                f"tokenizer={str(own)!r} has {len(words)} tokens, and the network {rows}: give the "
                "tokenizer of the network"
            )
        stored = folder if weights is None else weights
        backbone = AnswerRanks(model, length_normalized, _is_tied(open_checkpoint(stored)))
        super().__init__(backbone.eval(), preprocess, dim=0)
        self.exact_match = exact_match
        self.backbone.shared.requires_grad_(train_embeddings)
        self.load(stored)

    def writing(self) -> AbstractContextManager[None]:
        """See `AnswerRanks.writing`."""
        return self.backbone.writing()

    @property
    def features_of(self) -> str:
        """What features depend on besides weights."""
        return f"{self.preprocess!r}, length_normalized={self.backbone.mean}"

    def width(self, shape: Sequence[int]) -> int:
        """Return the number of answers, C, of inputs [n, 1 + C, L]."""
        return shape[0] - 1

    def fitting(self, source: CheckpointLike) -> Checkpoint:
        """Return the weights that `load` would load; copies of the embeddings are left out.

        Raises:
            InputError: See `Encoder.load`, or a file has other embeddings for encoder and decoder.
        """
        if isinstance(source, Mapping):
            checkpoint = as_checkpoint(source)
        else:
            check_tokenizer(source, self.preprocess)
            checkpoint = open_checkpoint(source)
        return super().fitting(_without_copies(checkpoint, self.backbone.tied))


def _is_tied(checkpoint: Checkpoint) -> bool:
    """Return whether a network's output layer is that of the embeddings."""
    own, shared = (
        next((name for name in checkpoint if name.endswith(end)), None)
        for end in ("lm_head.weight", "shared.weight")
    )
    return own is None or shared is None or same_bits(checkpoint, own, checkpoint, shared)


def _without_copies(checkpoint: Checkpoint, tied: bool) -> Checkpoint:
    """Return a checkpoint without tensors that repeat its shared embeddings."""
    ends = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    ends += ["lm_head.weight"] if tied else []
    kept = [name for name in checkpoint if not name.endswith(UNUSED)]
    checkpoint = checkpoint.renamed({name: name for name in kept})
    copies = [name for name in checkpoint if name.endswith(tuple(ends))]
    shared = [name for name in checkpoint if name.endswith("shared.weight")]
    for name in copies if shared else ():
        if not same_bits(checkpoint, name, checkpoint, shared[0]):
            raise InputError(
                f"{checkpoint.path or 'the given mapping'}: {name} differs from {shared[0]}, which "
                "are one tensor in this network; give weights of a T5 that ties them"
            )
    if copies and not shared:
        last = copies[0].removesuffix(next(end for end in ends if copies[0].endswith(end)))
        names = {n: n for n in checkpoint if n not in copies} | {f"{last}shared.weight": copies[0]}
    else:
        names = {name: name for name in checkpoint if name not in copies}
    return checkpoint.renamed(names)


def _t5(folder: Path, dropout: float) -> Any:
    """Return the untrained network of a folder's config.json."""
    from transformers import AutoConfig, T5ForConditionalGeneration

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except Exception as fault:  # transformers raises many kinds
        raise InputError(
            f"source={str(folder)!r} is not a network that transformers can build "
            f"({first_line(fault)}); give the folder of a T5"
        ) from None
    if config.model_type != "t5":
        raise InputError(
            f"source={str(folder)!r} is a {config.model_type}, not a T5; give encoders of text to "
            "TextEncoder"
        )
    config.dropout_rate = dropout
    return T5ForConditionalGeneration(config).float()
