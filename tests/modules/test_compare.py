"""The table: every candidate's accuracy against an independent count."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from tiny_zoo import ENCODER, TASKS

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.cost import Cost
from lightning_merge.core.errors import InputError, InputWarning
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.evaluation.candidates import Candidate, bounds
from lightning_merge.evaluation.correctness import Correctness
from lightning_merge.evaluation.results import Results
from lightning_merge.models import MiniResNet
from lightning_merge.models.head_files import load_heads, save_heads
from lightning_merge.models.heads import LinearHead
from lightning_merge.models.mini_vit import MiniViT
from lightning_merge.modules import AdaMerging, Evaluate
from lightning_merge.modules.compare import compare


def answered(files, data, task, weights, part):
    """Whether weights get each image of a task right."""
    network, head = MiniViT(**ENCODER).load(weights), load_heads(files.heads)[task]
    images = data.inputs(task, part)
    right = []
    for i in range(len(images)):
        batch = images[i]
        with torch.no_grad():
            logits = head(network(network.preprocess.finish(batch.inputs)))
        right.append(int(logits.argmax()) == int(batch.labels))
    return right


def counted(*arguments):
    """Accuracy of weights on a task, image by image."""
    right = answered(*arguments)
    return sum(right) / len(right)


@pytest.fixture
def evaluate(encoder, files):
    return Evaluate(encoder, files.heads, files.base)


@pytest.fixture
def candidates(files):
    experts = {task: Path(file) for task, file in files.expert.items()}
    return {c.name: c for c in bounds(Path(files.base), experts)}


def test_every_row_is_right_and_the_file_as_promised(
    trainer, evaluate, candidates, data, files, tmp_path, root
):
    data.eval_batch_size = 4
    results = compare(trainer(), evaluate, data, candidates, tmp_path, seed=5, command="c")
    for task in TASKS:
        own = counted(files, data, task, files.expert[task], "test")
        base = counted(files, data, task, files.base, "test")
        assert results.candidates["individual"].accuracy[task] == own
        assert results.candidates["base"].accuracy[task] == base
        assert own != base
    content = json.loads((tmp_path / "results.json").read_text())
    assert set(content) >= {"tasks", "candidates", "seed", "versions"}
    assert (content["tasks"], content["seed"]) == (list(TASKS), 5)
    assert list(content["candidates"]) == ["base", "individual"]
    for row in content["candidates"].values():
        assert set(row) >= {"accuracy", "average", "samples", "seconds"}
        assert row["average"] == pytest.approx(sum(row["accuracy"].values()) / len(TASKS))
        on_disk = {task: len(list(root.glob(f"{task}/test/*/*.png"))) for task in TASKS}
        assert row["samples"] == on_disk
    assert Results.from_json(tmp_path / "results.json") == results
    assert "individual" in (tmp_path / "results.md").read_text()


class Shifted:
    """Gives BatchNorm other statistics, as recalibration on strange images would."""

    def recalibrate(self, weights, task=None):
        return {n: t + 3.0 if n.endswith("running_mean") else t for n, t in weights.items()}


@pytest.mark.parametrize("harm", [-1.0, 100.0])
def test_what_recalibration_does_to_the_base_is_told(trainer, data, tmp_path, monkeypatch, harm):
    torch.manual_seed(0)
    encoder = MiniResNet(image_size=8, channels=(4, 4, 8, 8))
    base = encoder.backbone.state_dict()
    save_checkpoint(base, tmp_path / "base.safetensors")
    other = Shifted().recalibrate(base)
    data.preprocess = encoder.preprocess
    data.load()
    classes = {task: data.classes[task] for task in TASKS}
    heads = {task: LinearHead(torch.randn(len(names), 8)) for task, names in classes.items()}
    save_heads(heads, tmp_path / "heads.safetensors", classes=classes)

    def average(weights):
        network, found = MiniResNet(image_size=8, channels=(4, 4, 8, 8)), []
        network.backbone.load_state_dict(weights)
        for task in TASKS:
            images = data.inputs(task, "validation")
            batch = images.__getitems__(range(len(images)))
            with torch.no_grad():
                logits = heads[task](network.eval()(network.preprocess.finish(batch.inputs)))
            found.append((logits.argmax(1) == batch.labels).float().mean().item())
        return 100 * sum(found) / len(found)

    monkeypatch.setattr("lightning_merge.modules.compare.RECALIBRATION_WARNING", harm)
    evaluate = Evaluate(
        encoder, str(tmp_path / "heads.safetensors"), str(tmp_path / "base.safetensors")
    )
    rows = {"base": Candidate("base", tmp_path / "base.safetensors")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = compare(trainer(), evaluate, data, rows, tmp_path, seed=0, recalibrated=Shifted())
    assert "val" not in evaluate.measured  # no choice was made, and no note speaks of one
    want = f"The base has {average(base):.1f} % on the held-out images, and {average(other):.1f} %"
    want += " with BatchNorm statistics recalibrated on some of these."
    assert results.notes[0].startswith(want)
    warned = [str(w.message) for w in caught if "batch_norm: average" in str(w.message)]
    assert bool(warned) == (average(base) - average(other) > harm)


def test_every_answer_is_kept(trainer, evaluate, candidates, data, files, tmp_path):
    data.eval_batch_size = 4
    results = compare(trainer(), evaluate, data, candidates, tmp_path, seed=5)
    kept = Correctness.read(tmp_path)
    assert kept.fits(results)
    for task in TASKS:
        for name, weights in (("base", files.base), ("individual", files.expert[task])):
            own = answered(files, data, task, weights, "test")
            assert kept.right[name][task].tolist() == [own]
        assert kept.digests[task] == data.record[task]["test"]["digest"]
    assert {*TASKS, "average"} <= set(results.candidates["base"].intervals)
    assert results.corruption == ""
    few = "Fewer than 30 test examples of reds (14), shapes (21): their intervals are rough."
    assert results.notes == (few,)


def test_corrupted_images_are_other_images(trainer, evaluate, candidates, root, tmp_path):
    """Digests differ by kind and by severity, and so no run shares intervals with a clean one."""
    digests = []
    for severity in (None, 20, 30):
        given = severity and {"name": "gaussian_sigma", "severity": severity}
        data = MergeDataModule(str(root), tasks=list(TASKS), corruption=given)
        folder = tmp_path / str(severity)
        results = compare(trainer(), evaluate, data, candidates, folder, seed=0)
        assert results.corruption == (f"gaussian_sigma {severity}" if severity else "")
        assert Results.from_json(folder / "results.json") == results
        digests.append(Correctness.read(folder).digests["reds"])
        assert digests[-1].split()[0] == data.record["reds"]["test"]["digest"]
    assert len(set(digests)) == 3


def test_the_best_on_held_out_images_is_chosen(trainer, evaluate, data, files, tmp_path):
    data.preprocess = evaluate.preprocess

    def option(name, weights):
        return shutil.copy(weights, tmp_path / name)

    options = {"bad": option("0", files.expert["reds"]), "good": option("1", files.base)}
    scores = {
        what: [counted(files, data, task, path, "validation") for task in TASKS]
        for what, path in options.items()
    }
    assert sum(scores["good"]) > sum(scores["bad"])
    asked = []
    real = data.test_dataloader

    def watched():
        asked.append("test")
        assert (tmp_path / "0").exists()  # a run that stops here chooses again
        return real()

    data.test_dataloader = watched
    target = tmp_path / "tuned.safetensors"
    paths = {what: tmp_path / str(i) for i, what in enumerate(options)}
    variants = {
        what: Candidate("tuned", path, cost=Cost(len(what))) for what, path in paths.items()
    }
    candidate = Candidate("tuned", target, cost=Cost(9.0), options=variants)
    results = compare(trainer(), evaluate, data, {"tuned": candidate}, tmp_path, seed=0)
    assert asked == ["test"]
    assert target.read_bytes() == Path(files.base).read_bytes()
    assert not any(path.exists() for path in paths.values())
    row = results.candidates["tuned"]
    assert row.note == "good of 2 chosen on the held-out examples"
    assert row.seconds == len("good")  # the chosen one's own
    assert row.accuracy == {t: counted(files, data, t, files.base, "test") for t in TASKS}


LIMITS = [
    (1, "4 of 14 images of reds, 4 of 21 images of shapes"),
    (0.5, "8 of 14 images of reds, 12 of 21 images of shapes"),
    (5, "20 of 21 images of shapes"),
    (6, None),
    (1.0, None),
]


@pytest.mark.parametrize(("limit", "shares"), LIMITS)
def test_samples_are_those_really_looked_at(
    trainer, evaluate, candidates, data, files, tmp_path, recwarn, limit, shares
):
    data.eval_batch_size = 4
    limited = trainer(limit_test_batches=limit)
    results = compare(limited, evaluate, data, candidates, tmp_path, seed=0)
    said = f"trainer.limit_test_batches={limit}: accuracies cover only {shares}"
    note = (
        f"{said}; they are the first of each split, often of a few classes, so intervals, p values "
        "and bold hold for them alone."
    )
    assert results.notes[:-1] == ((note,) if shares else ())
    whole = {"reds": 14, "shapes": 21}
    count = limit if type(limit) is int else 2
    expected = {"reds": 4 * count, "shapes": 4 * count + 4 * (limit == 0.5)}
    expected = {task: min(whole[task], n) for task, n in expected.items()} if shares else whole
    assert results.candidates["base"].samples == expected
    kept = Correctness.read(tmp_path)
    for task, images in expected.items():  # the first ones
        own = answered(files, data, task, files.base, "test")[:images]
        assert kept.right["base"][task].tolist() == [own]
    warned = [str(w.message) for w in recwarn if issubclass(w.category, InputWarning)]
    assert {message.replace("test accuracies", "accuracies") for message in warned} == (
        {said} if shares else set()
    )


def test_choices_on_part_of_the_held_out_images(trainer, evaluate, files, data, tmp_path):
    data.eval_batch_size = 4
    path = tmp_path / "0"
    shutil.copy(files.base, path)
    candidate = Candidate("tuned", tmp_path / "tuned", options={"a": Candidate("tuned", path)})
    with pytest.warns(InputWarning, match="limit_val_batches=1: val accuracies cover only 4 of "):
        results = compare(
            trainer(limit_val_batches=1), evaluate, data, {"tuned": candidate}, tmp_path, seed=0
        )
    assert results.notes[:-1] == (
        "trainer.limit_val_batches=1: choices on held-out examples cover only 4 of 8 images of "
        "reds, 4 of 12 images of shapes.",
    )


@pytest.mark.parametrize(
    ("limit", "steps"), [(1, "1 of 3"), (0.7, "2 of 3"), (3, None), (1.0, None)]
)
def test_learning_from_part_of_the_images(
    trainer, encoder, zoo, evaluate, candidates, data, tmp_path, limit, steps
):
    data.batch_size = 4
    limited = trainer(limit_train_batches=limit, max_epochs=1)
    limited.fit(AdaMerging(encoder, zoo), datamodule=data)
    results = compare(limited, evaluate, data, candidates, tmp_path, seed=0)
    note = f"trainer.limit_train_batches={limit}: an epoch of learning was {steps} batches."
    assert results.notes[:-1] == ((note,) if steps else ())


def test_predictions_of_part_of_the_images(trainer, encoder, data, files):
    data.eval_batch_size = 10
    module = Evaluate(encoder, files.heads, files.base)
    words = "limit_predict_batches=1: predictions cover only 1 of 2 batches of reds, 1 of 3 batc"
    with pytest.warns(InputWarning, match=words):
        trainer(limit_predict_batches=1).predict(module, datamodule=data)


def test_predictions_are_the_experts_own(trainer, encoder, data, files):
    module = Evaluate(encoder, files.heads, files.expert)
    predicted = trainer().predict(module, datamodule=data)
    for task, batches in zip(TASKS, predicted, strict=True):
        right = (torch.cat(batches) == data.inputs(task, "test").labels).float().mean()
        assert float(right) == pytest.approx(counted(files, data, task, files.expert[task], "test"))


def test_weights_of_another_architecture_are_refused(trainer, data, files):
    other = MiniViT(**{**ENCODER, "width": 32, "num_heads": 4})
    with pytest.raises(InputError, match="reds"):
        trainer().test(Evaluate(other, files.heads, files.base), datamodule=data)


def test_an_update_costs_the_bytes_of_what_it_changes(
    trainer, evaluate, candidates, data, files, tmp_path
):
    """Counted by hand; references have no update."""
    weights = {name: tensor.clone() for name, tensor in open_checkpoint(files.base).items()}
    one, other, *_ = [name for name, tensor in weights.items() if tensor.dtype == torch.float32]
    weights[one].view(-1)[0] += 1
    weights[other] += 1
    merged = save_checkpoint(weights, tmp_path / "merged.safetensors")
    candidates["merged"] = Candidate("merged", merged)
    results = compare(trainer(), evaluate, data, candidates, tmp_path / "run", seed=0)
    stored = {name: row.update_bytes for name, row in results.candidates.items()}
    assert stored == {
        "base": None,
        "individual": None,
        "merged": 4 * (1 + weights[other].numel()),
    }
    read = Results.from_json(tmp_path / "run" / "results.json").candidates["merged"]
    assert read.update_bytes == stored["merged"]
