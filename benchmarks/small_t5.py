"""Pretrain a small T5 with its tokenizer on the train texts of some tasks, for `configs/t5_small`.

    python benchmarks/small_t5.py --data-root DATA --output runs/t5_small/base

It learns to restore spans that were cut out of texts, 15 % of their tokens, as T5 did (Raffel et
al. 2020). No label is looked at, and no text whose words are those of a test text. The folder is
that of a model of transformers.
"""

import argparse
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import report
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from lightning_merge.data.text_tables import TextTables

SPANS = [f"<extra_id_{i}>" for i in range(16)]
SPECIAL = ["<pad>", "</s>", "<unk>", *SPANS]
SIZES = {"d_model": 192, "d_kv": 32, "num_heads": 6, "d_ff": 512, "num_layers": 3}
LENGTH = 48
MASKED, SPAN = 0.15, 3


def words(text: str) -> str:
    """Return the words of a text, by which copies are found."""
    return " ".join(re.findall(r"\w+", text.lower()))


def read(root: Path, tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the train texts of the tasks that are no test texts, and their prompts and answers."""
    source, texts, prompts, tested = TextTables(root), {}, {}, set()
    for task in tasks:
        test, train = (source.load(task, split) for split in ("test", "train"))
        tested |= {words(text) for i in range(len(test.labels)) for text in test.item(i).texts}
        for i in range(len(train.labels)):
            item = train.item(i)
            texts |= dict.fromkeys(item.texts)
            prompts[item.prompt] = item.texts
            prompts |= dict.fromkeys(item.answers, ())
    texts = [text for text in texts if words(text) not in tested]
    known = set(texts)
    return texts, [prompt for prompt, own in prompts.items() if known.issuperset(own)]


def tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Return a unigram tokenizer with T5's special tokens, lower case."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, additional_special_tokens=SPANS, **special
    )


def cut(ids: Sequence[int], first: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """Cut spans out of a text's ids.

    Args:
        ids: Ids without the end.
        first: Id of the first of `SPANS`.
        generator: Draws the spans.

    Returns:
        Ids with one token for each span, and the spans behind theirs, both with the end.
    """
    count = max(1, round(len(ids) * MASKED / SPAN))
    starts = sorted(torch.randperm(max(1, len(ids)), generator=generator)[:count].tolist())
    left, spans, at = [], [], 0
    for number, start in enumerate(starts[: len(SPANS)]):
        start = max(start, at)
        left += [*ids[at:start], first + number]
        at = min(start + SPAN, len(ids))
        spans += [first + number, *ids[start:at]]
    return [*left, *ids[at:], 1], [*spans, 1]


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Return rows of ids as one tensor [n, L]."""
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)


def batches(texts: list[list[int]], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield places of texts of similar length, endlessly."""
    while True:
        order = torch.randperm(len(texts), generator=generator).tolist()
        for start in range(0, len(order), 32 * size):
            some = sorted(order[start : start + 32 * size], key=lambda i: len(texts[i]))
            parts = [some[at : at + size] for at in range(0, len(some), size)]
            for part in torch.randperm(len(parts), generator=generator).tolist():
                yield parts[part]


def train(
    model: T5ForConditionalGeneration, ids: list[list[int]], first: int, given: argparse.Namespace
) -> list[float]:
    """Train the network, and return the loss of every step."""
    generator = torch.Generator().manual_seed(given.seed)
    optimizer = torch.optim.AdamW(model.parameters(), given.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, given.learning_rate, given.steps, pct_start=0.05
    )
    order, losses = batches(ids, given.batch_size, generator), []
    for step in range(given.steps):
        pairs = [cut(ids[i], first, generator) for i in next(order)]
        inputs = padded([left for left, _ in pairs], 0)
        labels = padded([spans for _, spans in pairs], -100)
        mask = (inputs != 0).long()
        loss = model(input_ids=inputs, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 100 == 99:
            print(f"step {step + 1}: {sum(losses[-100:]) / 100:.2f}", file=sys.stderr, flush=True)
    return losses


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, pretrain, save and print what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data-root", type=Path, required=True, help="folder of the tasks' files")
    add("--output", type=Path, required=True, help="folder of the model, not there yet")
    tasks = ["sst2", "trec", "cr", "mpqa", "subj", "emotion", "agnews"]
    add("--tasks", nargs="+", default=tasks, help="tasks of single texts")
    add("--steps", type=int, default=1500)
    add("--batch-size", type=int, default=32)
    add("--learning-rate", type=float, default=3e-3)
    add("--words", type=int, default=4000, help="tokens of the tokenizer")
    add("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.output.exists():
        parser.error(f"--output={given.output} exists; give another folder")
    texts, prompts = read(given.data_root, given.tasks)
    known = tokenizer(prompts, given.words)
    first = known.convert_tokens_to_ids(SPANS[0])
    ids = [own[:LENGTH] for own in known(texts, add_special_tokens=False)["input_ids"]]
    ids = [own for own in ids if len(own) > SPAN]
    torch.manual_seed(given.seed)
    config = T5Config(vocab_size=len(known), decoder_start_token_id=0, dropout_rate=0.0, **SIZES)
    model = T5ForConditionalGeneration(config)
    began, cpu = time.perf_counter(), time.process_time()
    losses = train(model.train(), ids, first, given)
    took = f"{time.perf_counter() - began:.0f} s ({time.process_time() - cpu:.0f} s of CPU)"
    partial = given.output.with_name(f".{given.output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    known.save_pretrained(partial)
    model.eval().save_pretrained(partial)
    partial.rename(given.output)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    print(f"* {report.machine()}\n* {len(ids)} texts of {given.tasks}, seed {given.seed}")
    tenth = max(1, given.steps // 10)
    ends = (sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]))
    row = [f"{numbers / 1e6:.1f} M", str(given.steps), took, *(f"{loss:.2f}" for loss in ends)]
    names = ["parameters", "steps", "time", "loss of the first tenth", "of the last"]
    print(report.markdown(names, [row]))


if __name__ == "__main__":
    main()
