import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_texts import T5_WORDS, network, t5

from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.joined import joined
from lightning_merge.methods import Fisher
from lightning_merge.models import T5Encoder
from lightning_merge.models.texts import Texts

ITEMS = [
    Texts(prompt="the film is a joy good or bad", answers=("good", "very bad")),
    Texts(prompt="it was dull", answers=("warm and bright", "bad")),
]


def ids_of(encoder, items):
    make = encoder.preprocess.transform()
    rows = torch.stack([make(item) for item in items])
    return encoder.preprocess.finish(*encoder.preprocess.trim(rows))


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_scores_are_the_log_likelihoods_of_the_library(tmp_path, tied, mean):
    model = t5(tmp_path, tied)
    encoder = T5Encoder(str(tmp_path), max_length=20, length_normalized=mean)
    words = encoder.preprocess.tokenizer
    with torch.no_grad():
        found = encoder(ids_of(encoder, ITEMS))
        for row, item in enumerate(ITEMS):
            prompt = words(item.prompt, return_tensors="pt")["input_ids"]
            for column, answer in enumerate(item.answers):
                labels = words(answer, return_tensors="pt")["input_ids"]
                loss = model(input_ids=prompt, labels=labels).loss  # mean over tokens
                expected = -loss * (1 if mean else labels.shape[1])
                torch.testing.assert_close(found[row, column], expected, atol=1e-5, rtol=1e-5)
    assert encoder.width(ids_of(encoder, ITEMS).shape[1:]) == 2


@pytest.mark.parametrize(("tied", "seed"), [(True, 11), (False, 13)])
def test_what_it_writes_is_what_the_library_generates(tmp_path, tied, seed):
    """Answers are what greedy decoding writes to the prompt, its beginning, and a longer text."""
    model = t5(tmp_path, tied, seed)
    encoder = T5Encoder(str(tmp_path), max_length=20)
    for made in (model, encoder.backbone):  # which does not repeat itself for ever
        made.decoder.final_layer_norm.weight.data.neg_()
    words = encoder.preprocess.tokenizer
    prompts, rows, expected = ["film", "joy mess", "it was dull", "a gem of a film"], [], []
    for prompt in prompts:
        ids = words(prompt, return_tensors="pt")["input_ids"]
        made = model.generate(ids, max_new_tokens=6, do_sample=False, num_beams=1)[0, 1:].tolist()
        own = made[: made.index(1)] if 1 in made else made
        whole = [*own, 1]
        answers = [whole, [*own[:1], 5, 1], [*own, 6, 1], [8, 1]]
        rows.append(
            [[*answer, *[0] * (20 - len(answer))] for answer in [ids[0].tolist(), *answers]]
        )
        expected.append([answer == made[: len(answer)] for answer in answers])
    with encoder.backbone.writing(), torch.no_grad():
        found = encoder(torch.tensor(rows))
    assert found.tolist() == expected
    assert any(map(any, expected))
    assert encoder(torch.tensor(rows)).dtype == torch.float32


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_has_one_name_and_loads_from_any_file(tmp_path, tied):
    model = t5(tmp_path / "t5", tied)
    encoder = T5Encoder(str(tmp_path / "t5"), max_length=20)
    names = set(encoder.backbone.state_dict())
    assert "shared.weight" in names
    assert not any("embed_tokens" in name for name in names)
    assert ("lm_head.weight" in names) is not tied
    whole = {f"transformer.{n}": t.clone() for n, t in model.state_dict().items()}
    assert len(whole) > len(names)
    save_file(whole, tmp_path / "best.safetensors")
    encoder.load(tmp_path / "best.safetensors")
    for name, tensor in encoder.backbone.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    stored = load_file(tmp_path / "t5" / "model.safetensors")
    other = {**stored, "encoder.embed_tokens.weight": stored["shared.weight"] + 1}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"encoder\.embed_tokens\.weight differs from shared"):
        encoder.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("tied", [True, False])
def test_other_weights_reach_every_use_of_the_embeddings(tmp_path, tied):
    t5(tmp_path / "one", tied)
    t5(tmp_path / "two", tied, seed=1)
    one, two = (T5Encoder(str(tmp_path / name), max_length=20) for name in ("one", "two"))
    ids = ids_of(one, ITEMS)
    with torch.no_grad():
        torch.testing.assert_close(one.functional(two.backbone.state_dict(), ids), two(ids))
        assert not torch.allclose(one(ids), two(ids))


def test_answers_do_not_depend_on_the_others_of_a_batch(tmp_path):
    t5(tmp_path)
    encoder = T5Encoder(str(tmp_path), max_length=20)
    with torch.no_grad():
        together = encoder(ids_of(encoder, ITEMS))
        alone = torch.cat([encoder(ids_of(encoder, [item])) for item in ITEMS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_long_prompts_end_as_all_others(tmp_path):
    t5(tmp_path)
    encoder = T5Encoder(str(tmp_path), max_length=4)
    make = encoder.preprocess.transform()
    row = make(Texts(prompt="the film is a joy", answers=("good", "bad")))
    assert row[0].tolist() == [*(T5_WORDS.index(word) for word in ("the", "film", "is")), 1]
    assert make.cut == 1
    assert encoder.preprocess.remark({"films train": make}).startswith("1 texts have more than")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "bert"}, "is a bert, not a T5"),
        ({"source": "nowhere"}, "source='nowhere'"),
        ({"dropout": -1}, "dropout=-1"),
        ({"max_length": 1}, "max_length=1"),
    ],
)
def test_wrong_options_are_one_error(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    network(tmp_path / "bert")
    t5(tmp_path / "t5")
    with pytest.raises(InputError, match=message):
        T5Encoder(**{"source": "t5", "max_length": 20, **options})


def test_an_answer_without_tokens_is_refused(tmp_path):
    t5(tmp_path)
    encoder = T5Encoder(str(tmp_path), max_length=20)
    with pytest.raises(InputError, match="'' has no tokens"):
        encoder.preprocess.transform()(Texts(prompt="the film", answers=("good", "")))
    with pytest.raises(InputError, match="examples without answers"):
        encoder.preprocess.shape(1)


def test_a_bias_that_no_network_uses_is_passed_over(tmp_path):
    t5(tmp_path)
    file = tmp_path / "model.safetensors"
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    save_file({**load_file(file), unused: torch.ones(2, 2)}, file)
    assert unused not in T5Encoder(str(tmp_path), max_length=20).backbone.state_dict()


def test_tasks_with_different_numbers_of_answers_are_one_batch(tmp_path):
    t5(tmp_path)
    encoder = T5Encoder(str(tmp_path), max_length=20)
    more = [item._replace(answers=(*item.answers, "joy")) for item in ITEMS]
    rows = [encoder.preprocess.transform()(item) for item in (*ITEMS, *more)]
    two, three = torch.stack(rows[:2]).long(), torch.stack(rows[2:]).long()
    both = joined([two, three])
    assert both.shape == (4, 4, 20)
    with torch.no_grad():
        torch.testing.assert_close(encoder(both)[:2, :2], encoder(two), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(encoder(both)[2:], encoder(three), atol=1e-5, rtol=1e-5)


def test_fisher_has_weights_for_every_prompt(tmp_path):
    states = {}
    for seed, name in enumerate(("base", "a", "b")):
        t5(tmp_path / name, seed=seed)
        encoder = T5Encoder(str(tmp_path / name), max_length=20)
        states[name] = {n: t.clone() for n, t in encoder.backbone.state_dict().items()}
    base, ids = states.pop("base"), ids_of(encoder, ITEMS)
    inputs, heads = {"a": ids, "b": ids}, dict.fromkeys("ab", torch.nn.Identity())
    merged = Fisher()(base, states, model=encoder.backbone, batches=inputs, heads=heads)
    assert all(tensor.isfinite().all() for tensor in merged.values())
