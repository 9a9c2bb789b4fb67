import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_texts import KINDS, SIZES, WORDS, network, tokenizer
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
)

from lightning_merge.core.errors import InputError
from lightning_merge.models import TextEncoder, TextPreprocess
from lightning_merge.models.texts import Texts

TEXTS = ["the film is a joy", "it was very very dull and a mess of a bore", "warm"]


@pytest.fixture
def folder(tmp_path):
    network(tmp_path / "tiny")
    return tmp_path / "tiny"


def ids_of(encoder, *items):
    make = encoder.preprocess.transform()
    texts = [Texts(item if isinstance(item, tuple) else (item,)) for item in items]
    rows = torch.stack([make(item) for item in texts])
    return encoder.preprocess.finish(*encoder.preprocess.trim(rows))


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_library(tmp_path, kind, pooling):
    model = network(tmp_path, kind)
    if pooling == "pooler" and getattr(model, "pooler", None) is None:
        with pytest.raises(InputError, match=r"pooling='pooler': \w+ has no such layer"):
            TextEncoder(str(tmp_path), pooling=pooling, max_length=32)
        return
    encoder = TextEncoder(str(tmp_path), pooling=pooling, max_length=32)
    ids = ids_of(encoder, *TEXTS)
    mask = (ids != 0).long()
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask)
        states = output.last_hidden_state
        expected = {
            "mean": lambda: (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
            "cls": lambda: states[:, 0],
            "pooler": lambda: output.pooler_output,
        }[pooling]()
        found = encoder(ids)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert encoder.dim == found.shape[1] == 16
    assert set(encoder.backbone.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_same_features_in_any_batch(tmp_path, kind):
    network(tmp_path, kind)
    encoder = TextEncoder(str(tmp_path), max_length=32)
    with torch.no_grad():
        together = encoder(ids_of(encoder, *TEXTS))
        alone = torch.cat([encoder(ids_of(encoder, text)) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_can_be_replaced_and_differ_per_sample(tmp_path, kind):
    network(tmp_path / "one", kind)
    network(tmp_path / "two", kind, seed=1)
    one, two = (TextEncoder(str(tmp_path / name), max_length=32) for name in ("one", "two"))
    ids = ids_of(one, *TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(one.functional(two.backbone.state_dict(), ids), two(ids))
        if kind == "deberta-v2":
            return  # its own code for masks branches on values
        stacked = {
            name: torch.stack([tensor, two.backbone.state_dict()[name]])
            for name, tensor in one.backbone.named_parameters()
        }
        call = torch.vmap(
            lambda state, row: torch.func.functional_call(one.backbone, state, (row[None],))[0]
        )
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no weights per sample
            mixed = call(stacked, ids[:2])
    torch.testing.assert_close(mixed[0], one(ids)[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mixed[1], two(ids)[1], atol=1e-6, rtol=1e-5)


def test_pairs_apart_compare_the_features_of_both(folder):
    encoder = TextEncoder(str(folder), max_length=32)
    ids = ids_of(encoder, (TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[0]))
    assert ids.ndim == 3
    with torch.no_grad():
        u, v = (
            F.normalize(encoder(ids_of(encoder, *texts)), dim=1)
            for texts in zip((TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[0]), strict=True)
        )
        expected = torch.cat([(u - v).abs(), 4 * u * v], 1)
        torch.testing.assert_close(encoder(ids), expected, atol=1e-6, rtol=1e-5)
    assert encoder.width(ids.shape[1:]) == 32
    assert encoder.width(ids.shape[2:]) == 16


def test_joint_pairs_have_segments(tmp_path):
    model = network(tmp_path)
    encoder = TextEncoder(str(tmp_path), max_length=32, pairs="joint")
    ids = ids_of(encoder, (TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[0]))
    words = encoder.preprocess.tokenizer
    own = words([TEXTS[0], TEXTS[2]], [TEXTS[1], TEXTS[0]], padding=True, return_tensors="pt")
    assert torch.equal(ids, own["input_ids"])
    own["token_type_ids"] = torch.tensor([text.type_ids for text in own.encodings])
    assert own["token_type_ids"].any(1).all()
    with torch.no_grad():
        states = model(**own).last_hidden_state
        mask = own["attention_mask"][..., None]
        expected = (states * mask).sum(1) / mask.sum(1)
        torch.testing.assert_close(encoder(ids), expected, atol=1e-6, rtol=1e-5)


def test_experts_with_a_prefix_and_a_head_of_their_own_load(folder, tmp_path):
    config = BertConfig(**SIZES, max_position_embeddings=40, num_labels=3)
    expert = AutoModelForSequenceClassification.from_config(config)
    expert.save_pretrained(tmp_path / "expert")
    encoder = TextEncoder(str(folder), max_length=32).load(tmp_path / "expert")
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, expert.bert.state_dict()[name]), name


def test_old_names_of_layer_norms_load(folder, tmp_path):
    model = AutoModel.from_pretrained(folder)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    assert any(name.endswith("gamma") for name in old)
    save_file(old, folder / "model.safetensors")
    encoder = TextEncoder(str(folder), max_length=32)
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_embeddings_and_a_pooler_that_is_not_used_are_frozen(folder):
    frozen = TextEncoder(str(folder), max_length=32)
    names = {n for n, p in frozen.backbone.named_parameters() if not p.requires_grad}
    pooler = {"pooler.dense.weight", "pooler.dense.bias"}
    assert names == {"embeddings.word_embeddings.weight", *pooler}
    trained = TextEncoder(str(folder), max_length=32, pooling="pooler", train_embeddings=True)
    assert all(p.requires_grad for p in trained.backbone.parameters())


def test_a_base_without_a_pooler_loads_unless_it_is_used(folder):
    stored = load_file(folder / "model.safetensors")
    without = {n: t for n, t in stored.items() if not n.startswith("pooler.")}
    save_file(without, folder / "model.safetensors")
    encoder = TextEncoder(str(folder), max_length=32)
    assert set(encoder.backbone.state_dict()) == set(without)
    with pytest.raises(InputError, match=r"missing: pooler\.dense"):
        TextEncoder(str(folder), max_length=32, pooling="pooler")


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "deberta-v2"])
def test_experts_without_a_pooler_load(tmp_path, kind):
    network(tmp_path / "base", kind)
    config = AutoConfig.from_pretrained(tmp_path / "base")
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "expert")
    encoder = TextEncoder(str(tmp_path / "base"), max_length=24, pooling="cls")
    encoder.load(tmp_path / "expert")


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
def test_nothing_is_dropped_unless_asked_for(tmp_path, kind):
    network(tmp_path, kind)
    encoder = TextEncoder(str(tmp_path), max_length=24).train()
    ids = ids_of(encoder, *TEXTS)
    assert torch.equal(encoder(ids), encoder(ids))
    dropping = TextEncoder(str(tmp_path), max_length=24, dropout=0.5).train()
    assert not torch.equal(dropping(ids), dropping(ids))


def test_half_precision_in_a_config_does_not_round_weights(folder):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": "float16"}))
    encoder = TextEncoder(str(folder), max_length=24)
    assert {p.dtype for p in encoder.backbone.parameters()} == {torch.float32}


def test_long_texts_are_cut_behind_their_last_token_and_counted(folder):
    encoder = TextEncoder(str(folder), max_length=6)
    make = encoder.preprocess.transform()
    rows = [make(Texts((text,))) for text in TEXTS]
    assert rows[1].tolist() == [2, *(WORDS.index(w) for w in ("it", "was", "very", "very")), 3]
    assert make.cut == 2
    assert "2 of films train" in encoder.preprocess.remark({"films train": make})
    assert encoder.preprocess.remark({"films train": encoder.preprocess.transform()}) == ""


def test_truncation_and_padding_of_the_file_do_not_matter(folder):
    file = folder / "tokenizer.json"
    stored = json.loads(file.read_text())
    expected = ids_of(TextEncoder(str(folder), max_length=32), *TEXTS)
    stored["truncation"] = {
        **{"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    }
    stored["padding"] = {
        **{"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
    }
    file.write_text(json.dumps(stored))
    assert torch.equal(ids_of(TextEncoder(str(folder), max_length=32), *TEXTS), expected)


def test_equal_tokenizers_in_other_folders_are_equal(folder, tmp_path):
    tokenizer(tmp_path / "same")
    tokenizer(tmp_path / "other", [*WORDS[:-1], "out"])
    one, same, other = (
        TextPreprocess.of(place) for place in (folder, tmp_path / "same", tmp_path / "other")
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "nowhere/at/all"}, "source='nowhere/at/all'"),
        ({"pooling": "max"}, "pooling='max'"),
        ({"pairs": "both"}, "pairs='both'"),
        ({"max_length": 41}, "max_length=41: the network takes 40 tokens at most"),
        ({"max_length": 2}, "max_length=2"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"tokenizer": "empty"}, "tokenizer='.*empty' has no tokenizer"),
        ({"tokenizer": "large"}, "has 24 tokens, and the network 23"),
    ],
)
def test_wrong_options_are_one_error(folder, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    tokenizer(tmp_path / "large", [*WORDS, "more"])
    with pytest.raises(InputError, match=message):
        TextEncoder(**{"source": str(folder), "max_length": 32, **options})


def test_t5_is_no_encoder_of_text(tmp_path):
    from transformers import T5Config

    tokenizer(tmp_path)
    T5Config(d_model=8, num_layers=1, num_heads=2).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a t5, not an encoder of text"):
        TextEncoder(str(tmp_path))


def test_examples_of_three_texts_are_refused(folder):
    encoder = TextEncoder(str(folder), max_length=32)
    with pytest.raises(InputError, match="examples of 3 texts"):
        encoder.preprocess.shape(3)
    with pytest.raises(InputError, match="need T5Encoder"):
        encoder.preprocess.shape(0)


def test_experts_with_other_tokens_are_refused_with_their_names(folder, tmp_path):
    network(tmp_path / "expert", vocab_size=len(WORDS) + 1)
    tokenizer(tmp_path / "expert", [*WORDS, "extra"])
    encoder = TextEncoder(str(folder), max_length=32)
    with pytest.raises(
        InputError, match="tokenizer beside them is not the encoder's: it adds 'extra'"
    ):
        encoder.load(tmp_path / "expert")
    tokenizer(tmp_path / "swapped", [*WORDS[:-2], WORDS[-1], WORDS[-2]])
    network_file = folder / "model.safetensors"
    (tmp_path / "swapped" / "model.safetensors").write_bytes(network_file.read_bytes())
    with pytest.raises(InputError, match="it has other ids or rules"):
        encoder.load(tmp_path / "swapped" / "model.safetensors")


def test_tokenizers_of_other_rules_differ(folder, tmp_path):
    file = tmp_path / "cased" / "tokenizer.json"
    tokenizer(file.parent)
    rules = json.loads(file.read_text())
    assert rules["normalizer"] == {"type": "Lowercase"}
    file.write_text(json.dumps(rules | {"normalizer": {"type": "NFC"}}))
    assert TextPreprocess.of(folder) != TextPreprocess.of(file.parent)
