"""Texts from end to end: experts, heads, coefficients, merges and tables of tiny networks."""

import json

import pytest
import torch
import yaml
from processes import on
from tiny_texts import T5_WORDS, network, records, sentences, t5, table, tasks
from tiny_zoo import TRAINER
from transformers import AutoModelForSequenceClassification, BertConfig

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.models import LinearHead, TextEncoder, load_heads

MERGES = [
    {"name": "average", "method": {"class_path": "Average"}},
    {"name": "regmean", "method": {"class_path": "RegMean"}},
    {"name": "m_ties", "method": {"class_path": "MTies"}},
    {"name": "fisher", "method": {"class_path": "Fisher", "init_args": {"labels": "sampled"}}},
    {"name": "emr", "method": {"class_path": "EMR"}},
    {"name": "surgery", "method": {"class_path": "Surgery", "init_args": {"steps": 3}}},
    {"name": "recentred", "method": {"class_path": "Recentre"}},
]


@pytest.fixture
def base(tmp_path):
    network(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def texts(tmp_path):
    return tasks(tmp_path / "texts", 32)


@pytest.fixture
def write(tmp_path):
    def to(name, content):
        (tmp_path / name).write_text(yaml.safe_dump(content))
        return tmp_path / name

    return to


@pytest.fixture
def config(tmp_path, base, texts, write):
    """Write the config of a run over tasks of single texts and pairs, experts made on the way."""

    def make(source=base, kind="TextEncoder", module="StatsMerging", zoo=None, data=None, **own):
        init = {"source": str(source), "max_length": 24}
        encoder = {"class_path": f"lightning_merge.models.{kind}", "init_args": init}
        shared = {"root": str(texts), "source": "tables", "validation_fraction": 0.25}
        expert = {
            "model": {
                "class_path": "lightning_merge.modules.FineTune",
                "init_args": {
                    "encoder": encoder,
                    "output": str(tmp_path / "expert.safetensors"),
                    "learning_rate": 1e-2,
                },
            },
            "data": {**shared, "fit_on": "train", "batch_size": 8},
            "trainer": {**TRAINER, "max_epochs": 2, "default_root_dir": str(tmp_path / "expert")},
        }
        files = {
            "base": str(source),
            "experts": str(tmp_path / "experts" / "{task}.safetensors"),
            "heads": str(tmp_path / "heads.safetensors"),
            "expert_recipe": str(write("expert.yaml", expert)),
        }
        callbacks = [
            {"class_path": "lightning_merge.callbacks.MergeCallback", "init_args": one}
            for one in own.pop("merges", MERGES)
        ]
        return write(
            "config.yaml",
            {
                "seed_everything": 0,
                "model": {
                    "class_path": f"lightning_merge.modules.{module}",
                    "init_args": {"encoder": encoder, "zoo": {**files, **(zoo or {})}, **own},
                },
                "data": {
                    **shared,
                    "tasks": ["films", "books", "pairs"],
                    "batch_size": 4,
                    "unlabelled_inputs": 12,
                    **(data or {}),
                },
                "trainer": {
                    **TRAINER,
                    "max_epochs": 1,
                    "default_root_dir": str(tmp_path / "run"),
                    "callbacks": callbacks,
                },
            },
        )

    return make


def results(tmp_path):
    return json.loads((tmp_path / "run" / "results.json").read_text())["candidates"]


def test_experts_are_made_merged_and_measured(run, config, tmp_path):
    found = run("fit", "--config", config())
    assert found.code == 0, found.err
    rows = results(tmp_path)
    names = [one["name"] for one in MERGES]
    assert list(rows) == ["base", "individual", *names, "sml"]
    assert all(row["samples"] == {"films": 32, "books": 32, "pairs": 32} for row in rows.values())
    heads = load_heads(tmp_path / "heads.safetensors")
    assert {task: head.dim for task, head in heads.items()} == {
        "films": 16,
        "books": 16,
        "pairs": 32,
    }
    assert rows["individual"]["average"] > rows["base"]["average"]
    merged = open_checkpoint(tmp_path / "run" / "merged" / "average.safetensors")
    TextEncoder(str(tmp_path / "base"), max_length=24).load(tmp_path / "run/merged/sml.safetensors")
    assert set(merged) == set(open_checkpoint(tmp_path / "base"))
    again = run("fit", "--config", config())
    assert "nothing has changed" in again.out


def test_unseen_tasks_and_data_sets_out_of_domain(run, config, tmp_path, texts):
    for number, split in enumerate(("train", "test")):
        table(texts / "plays" / f"{split}.tsv", ["text", "label"], sentences(32, 20 + number))
    apart = {"unseen": ["pairs"], "out_of_domain": ["plays"]}
    found = run("fit", "--config", config(data=apart, module="AdaMerging", merges=MERGES[:1]))
    assert found.code == 0, found.err
    tested = dict.fromkeys(("films", "books", "pairs", "plays"), 32)
    assert results(tmp_path)["adamerging"]["samples"] == tested
    learned = open_checkpoint(tmp_path / "run" / "coefficients.safetensors")["coefficients"]
    assert learned.shape[0] == 2
    assert not (tmp_path / "experts" / "plays.safetensors").exists()


def test_merge_and_mergeability_run_the_network_on_texts(run, config, tmp_path):
    assert run("fit", "--config", config(merges=[])).code == 0
    experts = [
        word
        for task in ("films", "books", "pairs")
        for word in (f"--experts.{task}", tmp_path / "experts" / f"{task}.safetensors")
    ]
    network = ["--base", tmp_path / "base", *experts]
    network += ["--encoder", "TextEncoder", "--encoder.source", tmp_path / "base"]
    network += ["--encoder.max_length", "24", "--data.root", tmp_path / "texts"]
    network += ["--data.source", "tables", "--data.unlabelled_inputs", "12"]
    network += ["--data.validation_fraction", "0.25"]
    merged = tmp_path / "merged.safetensors"
    found = run("merge", *network, "--method", "RegMean", "--output", merged)
    assert found.code == 0, found.err
    assert json.loads(open_checkpoint(merged).metadata["images"]) == dict.fromkeys(
        ("films", "books", "pairs"), 4
    )
    found = run("mergeability", *network)
    assert found.code == 0, found.err
    assert "texts in" in found.out


def test_heads_of_published_experts_are_used_in_the_order_of_the_data(
    run, config, tmp_path, base, texts
):
    from tiny_texts import SIZES

    for number, task in enumerate(("films", "books")):
        torch.manual_seed(number)
        own = {"max_position_embeddings": 40, "id2label": {0: "good", 1: "bad"}}
        expert = AutoModelForSequenceClassification.from_config(BertConfig(**SIZES, **own))
        expert.save_pretrained(tmp_path / "published" / task)
    zoo = {"make_heads": "experts", "experts": str(tmp_path / "published" / "{task}")}
    zoo["expert_recipe"] = None
    only = {"tasks": ["films", "books"]}
    path = config(zoo=zoo, data=only, merges=MERGES[:1])
    refused = run("fit", "--config", path)
    assert refused.code == 2
    assert "encoder.pooling='mean': the heads of bert experts expect 'pooler'" in refused.err
    found = run("fit", "--config", path, "--model.encoder.pooling", "pooler")
    assert found.code == 0, found.err
    head = load_heads(tmp_path / "heads.safetensors")["books"]
    assert isinstance(head, LinearHead)
    assert head.classes == ("bad", "good")
    assert torch.equal(head.weight, expert.classifier.weight.data.flip(0))
    file = tmp_path / "published" / "films" / "config.json"
    renamed = json.loads(file.read_text()) | {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    file.write_text(json.dumps(renamed))
    options = ["--model.encoder.pooling", "pooler", "--model.zoo.heads", tmp_path / "other.st"]
    other = run("fit", "--config", path, *options, "--overwrite", "true")
    assert other.code == 2
    assert "id2label names 'LABEL_0', 'LABEL_1'" in other.err


def test_t5_ranks_answers_that_differ_from_example_to_example(run, config, tmp_path, texts):
    t5(tmp_path / "t5")
    for name, seed in (("train", 0), ("val", 1), ("dev32", 2)):
        rows = [
            {
                "premise": text,
                "question": "cause",
                "choice1": "joy and gem",
                "choice2": "a mess",
                "label": int(label == "bad"),
            }
            for text, label in sentences(24, seed)
        ]
        records(texts / "copa" / f"{name}.jsonl", rows)
    for name, seed in (("train", 3), ("test", 4)):
        rows = [(text, int(label == "good")) for text, label in sentences(24, seed)]
        (texts / "sst2").mkdir(exist_ok=True)
        table(texts / "sst2" / f"{name}.tsv", rows[0], rows[1:])
    assert "joy" in T5_WORDS
    both = {"tasks": ["copa", "sst2"]}
    merges = [MERGES[0], MERGES[1], MERGES[4]]
    path = config(tmp_path / "t5", "T5Encoder", data=both, merges=merges)
    found = run("fit", "--config", path, "--model.encoder.exact_match", "true")
    assert found.code == 0, found.err
    rows = results(tmp_path)
    assert list(rows) == ["base", "individual", "average", "regmean", "emr", "sml"]
    assert rows["individual"]["average"] > rows["base"]["average"]
    for name in ("base", "individual", "average", "sml"):
        assert list(rows[name]["beside"]) == ["copa EM", "sst2 EM"]
    assert "beside" not in rows["emr"]
    assert "EM: exact match" in (tmp_path / "run" / "results.md").read_text()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"tasks": ["films", "nowhere"]}, "task 'nowhere' has no data"),
        ({"corruption": {"name": "contrast", "severity": 1}}, "data.corruption is for images"),
        ({"at_most": {"tests": 3}}, "data.at_most='tests'"),
        ({"at_most": {"test": 0}}, "data.at_most.test=0"),
    ],
)
def test_bad_input_is_one_line(run, config, data, message):
    found = run("fit", "--config", config(data=data, merges=[]))
    assert found.code == 2
    assert message in found.err


def test_no_more_examples_than_asked_for_are_looked_at(run, config, tmp_path):
    few = {"at_most": {"train": 12, "validation": 6, "test": 10}}
    found = run("fit", "--config", config(data=few, merges=MERGES[:1]))
    assert found.code == 0, found.err
    assert results(tmp_path)["average"]["samples"] == {"films": 10, "books": 10, "pairs": 10}
    splits = json.loads((tmp_path / "run" / "splits.json").read_text())["tasks"]
    assert splits["films"]["train"]["images"] == 12
    assert "at most 12 train, 6 validation, 10 test" in (tmp_path / "run/results.md").read_text()


def test_the_old_name_of_unlabelled_inputs_is_understood(run, config):
    path = config(data={"unlabelled_images": 6}, merges=MERGES[1:2])
    found = run("fit", "--config", path)
    assert found.code == 0, found.err
    assert found.err.count("data.unlabelled_images is now data.unlabelled_inputs") == 1


def test_processes_share_texts_and_find_the_same(run, command, config, tmp_path):
    path = config(merges=MERGES[:1])
    assert run("fit", "--config", path).code == 0
    alone = results(tmp_path)
    for size in (2, 3):
        place = tmp_path / f"by{size}"
        options = [*on(size), "--trainer.default_root_dir", place]
        assert command(size, "fit", "--config", path, *options) == [0] * size
        found = json.loads((place / "results.json").read_text())["candidates"]
        for name in ("base", "individual", "average"):
            assert found[name]["accuracy"] == alone[name]["accuracy"]
            assert found[name]["samples"] == alone[name]["samples"]
