"""The pretraining of a small T5: what it cuts out, what it reads, and the folder it writes."""

import sys
from pathlib import Path

import pytest
import torch
from tiny_texts import sentences, table

from lightning_merge.models import T5Encoder
from lightning_merge.models.texts import Texts

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import small_t5


@pytest.mark.parametrize("length", [4, 11, 48])
def test_texts_can_be_put_together_again(length):
    generator, ids = torch.Generator().manual_seed(length), [*range(100, 100 + length)]
    for _ in range(20):
        left, spans = small_t5.cut(ids, 3, generator)
        marks = [token for token in spans if 3 <= token < 19]
        assert marks == [token for token in left if token < 100 and token != 1]
        parts, current = {}, None
        for token in spans[:-1]:
            if token in marks:
                current = parts.setdefault(token, [])
            else:
                current.append(token)
        whole = [t for token in left[:-1] for t in parts.get(token, [token])]
        assert whole == ids
        assert left[-1] == spans[-1] == 1
        assert 1 <= sum(map(len, parts.values())) <= max(3, 0.2 * length)


def test_a_folder_that_the_encoder_takes(tmp_path, capsys):
    for name, seed in (("train", 0), ("test", 1)):
        rows = [(text, int(label == "good")) for text, label in sentences(200, seed)]
        rows.append(("A joy, a film", 1))
        (tmp_path / "sst2").mkdir(exist_ok=True)
        table(tmp_path / "sst2" / f"{name}.tsv", rows[0], rows[1:])
    texts, prompts = small_t5.read(tmp_path, ["sst2"])
    assert texts
    assert not any("A joy, a film" in text for text in [*texts, *prompts])
    assert "positive" in prompts
    output = tmp_path / "base"
    given = ["--data-root", str(tmp_path), "--output", str(output), "--tasks", "sst2"]
    small_t5.main([*given, "--steps", "3", "--batch-size", "4", "--words", "60"])
    assert "parameters" in capsys.readouterr().out
    encoder = T5Encoder(str(output), max_length=30)
    ids = encoder.preprocess.transform()(Texts(prompt="a joy", answers=("positive", "negative")))
    assert encoder(ids.long()[None]).shape == (1, 2)
    with pytest.raises(SystemExit):
        small_t5.main(given)
    assert "exists; give another folder" in capsys.readouterr().err
