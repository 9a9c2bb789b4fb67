"""Accuracy over the union of the classes of all tasks."""

import pytest
import torch
from tiny_zoo import ENCODER, TASKS, zoo_of

from lightning_merge.data import MergeDataModule
from lightning_merge.data.joint import JointLabels
from lightning_merge.evaluation.candidates import Candidate
from lightning_merge.evaluation.results import Results
from lightning_merge.methods import EMR, Ensemble
from lightning_merge.methods.network import save_network
from lightning_merge.models.head_files import load_heads
from lightning_merge.models.mini_vit import MiniViT
from lightning_merge.modules import Evaluate
from lightning_merge.modules.compare import compare


def test_classes_of_equal_words_are_one():
    digits = [*map(str, range(10))]
    joint = JointLabels(
        {"mnist": digits, "svhn": digits, "eurosat": ["Forest"], "gtsrb": [*map(str, range(43))]}
    )
    assert joint.size == 10 + 1 + 43
    assert joint.of["mnist"].tolist() == joint.of["svhn"].tolist()
    assert len(joint.rows) == 10 + 10 + 1 + 43
    logits = torch.zeros(2, 64)
    logits[0, 13] = logits[1, 3] = 1  # digit 3, by either head
    assert joint.predicted(logits).tolist() == [3, 3]
    assert joint.true("svhn", torch.tensor([3])).tolist() == [3]


def test_classes_of_one_task_stay_apart():
    """ImageNet has two classes called missile."""
    joint = JointLabels({"birds": ["1_crane", "2_crane", "3_gull"], "things": ["crane", "gull"]})
    assert joint.of["birds"].tolist() == [0, 1, 2]
    assert joint.of["things"].tolist() == [3, 2]


@torch.no_grad()
def by_hand(data, heads, task, networks):
    """Fraction of a task's test images whose class has the highest of all mean logits."""
    images = data.inputs(task, "test")
    batch = images[list(range(len(images)))]
    normal = networks[0].preprocess.finish(batch.inputs)
    features = [network(normal) for network in networks]
    logits = sum(torch.cat([heads[t](found) for t in TASKS], dim=1) for found in features)
    offset = {"reds": 0, "shapes": 2}[task]
    return float((logits.argmax(1) == batch.labels + offset).float().mean())


def test_every_network_that_is_not_told_the_task_is_measured(
    trainer, encoder, files, root, tmp_path
):
    data = MergeDataModule(str(root), tasks=list(TASKS), joint_labels=True, eval_batch_size=4)
    base, experts = zoo_of(files).open(MiniViT(**ENCODER), list(TASKS))
    networks = {}
    for name, method in {"ensemble": Ensemble(), "emr": EMR()}.items():
        network = method(base, experts, model=encoder.backbone, project=encoder.project)
        networks[name] = tmp_path / f"{name}.safetensors"
        save_network(network, networks[name], metadata={})
    rows = {row.name: row for row in zoo_of(files).bounds(list(TASKS))}
    rows |= {name: Candidate(name, file) for name, file in networks.items()}
    evaluate = Evaluate(encoder, files.heads, files.base)
    results = compare(trainer(), evaluate, data, rows, tmp_path, seed=0)
    assert Results.from_json(tmp_path / "results.json") == results
    found = {name: row.joint for name, row in results.candidates.items()}
    assert found["individual"] is None
    assert found["emr"] is None
    heads = load_heads(files.heads)
    one = [MiniViT(**ENCODER).load(files.base)]
    experts = [MiniViT(**ENCODER).load(file) for file in files.expert.values()]
    for task in TASKS:
        assert found["base"][task] == pytest.approx(by_hand(data, heads, task, one))
        assert found["ensemble"][task] == pytest.approx(by_hand(data, heads, task, experts))
        for name in ("base", "ensemble"):
            assert found[name][task] <= results.candidates[name].accuracy[task]
    mean = sum(found["base"].values()) / 2
    assert results.figures("base")["joint"] == pytest.approx(mean)
    table = (tmp_path / "results.md").read_text()
    assert "| joint |" in table
    assert "Blank where a network is told the task." in table


def test_the_tasks_own_accuracy_is_the_same(trainer, encoder, files, root, tmp_path):
    def measured(**options):
        data = MergeDataModule(str(root), tasks=list(TASKS), **options)
        module = Evaluate(encoder, files.heads, files.expert["reds"])
        trainer().test(module, datamodule=data, verbose=False)
        return module.measured["test"]

    plain, joint = measured(), measured(joint_labels=True)
    assert plain.accuracy == joint.accuracy
    assert plain.joint == {}
    assert set(joint.joint) == set(TASKS)


def test_the_command_shows_it(run, config, tmp_path):
    assert run("fit", "--config", config(trainer__max_epochs=1, data__joint_labels=True)).code == 0
    results = Results.from_json(tmp_path / "run" / "results.json")
    shown = run("test", "--config", tmp_path / "run" / "config.yaml")
    assert f"test/joint: {100 * results.figures('sml')['joint']:.1f} %" in shown.out
    plain = run("test", "--config", config(trainer__max_epochs=1))
    assert "joint" not in plain.out
