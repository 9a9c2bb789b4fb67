"""Tiny networks of text with tokenizers, and folders of texts, all made here."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel, WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer, Whitespace
from tokenizers.processors import BertProcessing, TemplateProcessing
from transformers import AutoModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from transformers import models as library

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD, BAD = ["joy", "gem", "bright", "warm"], ["bore", "mess", "dull", "cold"]
NEUTRAL = ["a", "the", "film", "it", "is", "was", "very", "and", "of", "in"]
WORDS = [*SPECIAL, *GOOD, *BAD, *NEUTRAL]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "vocab_size": len(WORDS), "pad_token_id": 0}
KINDS = {
    "bert": (library.bert.BertConfig, {"max_position_embeddings": 40}),
    "roberta": (library.roberta.RobertaConfig, {"max_position_embeddings": 41}),
    "distilbert": (
        library.distilbert.DistilBertConfig,
        {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 40},
    ),
    "deberta-v2": (
        library.deberta_v2.DebertaV2Config,
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
    ),
    "modernbert": (
        library.modernbert.ModernBertConfig,
        {"local_attention": 6, "global_attn_every_n_layers": 2, "reference_compile": False},
    ),
}


def tokenizer(folder: Path, words=WORDS) -> None:
    """Write a WordPiece tokenizer of a few words."""
    model = Tokenizer(WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    model.normalizer, model.pre_tokenizer = Lowercase(), BertPreTokenizer()
    model.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {
        f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")
    }
    PreTrainedTokenizerFast(tokenizer_object=model, **special).save_pretrained(folder)


def network(folder: Path, kind: str = "bert", seed: int = 0, **options):
    """Write an untrained network with its tokenizer as one is published; return the network."""
    config, own = KINDS[kind]
    ids = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(seed)
    model = AutoModel.from_config(config(**{**SIZES, **ids, **own, **options})).eval()
    tokenizer(folder)
    model.save_pretrained(folder)
    return model


T5_WORDS = ["<pad>", "</s>", "<unk>", *WORDS[5:], "good", "bad", "or", "negative", "positive"]


def t5(folder, tied=True, seed=0, **options):
    """Write a two-layer T5 with a tokenizer as one is published; return the network."""
    model = Tokenizer(WordLevel({w: i for i, w in enumerate(T5_WORDS)}, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    model.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=model, **special).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    own = {"vocab_size": len(T5_WORDS), "decoder_start_token_id": 0, "tie_word_embeddings": tied}
    kind = {} if tied else {"feed_forward_proj": "gated-gelu"}
    made = T5ForConditionalGeneration(T5Config(**sizes, **own, **kind, **options)).eval()
    if not tied:
        made.lm_head.weight = torch.nn.Parameter(torch.randn(len(T5_WORDS), 16))
    with torch.no_grad():
        for parameter in made.parameters():  # so that no bias or scale hides an error
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    named = dict(made.named_parameters())  # tied ones once, as published
    save_file({n: t.detach().clone() for n, t in named.items()}, folder / "model.safetensors")
    return made


def sentences(count: int, seed: int, good=GOOD, bad=BAD) -> list[tuple[str, str]]:
    """Return texts of three to twelve words with the class of their opinion, half of each."""
    generator = torch.Generator().manual_seed(seed)

    def pick(words, number):
        return [words[i] for i in torch.randint(len(words), (number,), generator=generator)]

    found = []
    for i in range(count):
        label = ("bad", "good")[i % 2]
        length = int(torch.randint(2, 11, (1,), generator=generator))
        words = [*pick(NEUTRAL, length), *pick(good if i % 2 else bad, 1)]
        found.append((f"{' '.join(words)} {i}", label))  # the number makes texts differ
    return found


def tasks(root: Path, count: int = 48) -> Path:
    """Write two tasks of single texts and one of pairs as tables."""
    for number, name in enumerate(("films", "books")):
        for split in ("train", "test"):
            rows = sentences(count, 2 * number + (split == "test"))
            table(root / name / f"{split}.tsv", ["text", "label"], rows)
    for split in ("train", "test"):
        one, two = sentences(count, 7 + (split == "test")), sentences(count, 9)
        two = two[::-1] if split == "test" else two
        both = enumerate(zip(one, two, strict=True))
        rows = [(a, b, ("same", "other")[i % 2]) for i, ((a, _), (b, _)) in both]
        table(root / "pairs" / f"{split}.tsv", ["text", "text_pair", "label"], rows)
    return root


def table(path: Path, columns, rows) -> None:
    """Write a table with tabs between its columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [columns, *rows]))


def records(path: Path, rows) -> None:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
