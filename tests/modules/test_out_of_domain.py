"""Data sets without an expert: measured, and seen by nothing else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_zoo import CLASSES, ENCODER, TASKS, zoo_of

from lightning_merge.core.errors import InputError
from lightning_merge.data import MergeDataModule
from lightning_merge.evaluation.correctness import Correctness
from lightning_merge.evaluation.results import Results
from lightning_merge.models.head_files import load_heads, save_heads
from lightning_merge.models.mini_vit import MiniViT
from lightning_merge.modules import AdaMerging, Evaluate, StatsMerging
from lightning_merge.modules.compare import compare
from lightning_merge.modules.make_heads import make_heads

OTHER = "third"


def change(root, task, of):
    """Replace the pictures of a task by a function of their pixels and their numbers."""
    for i, file in enumerate(sorted(root.glob(f"{task}/*/*/*.png"))):
        Image.fromarray(of(np.asarray(Image.open(file)), i)).save(file)


def apart(pixels, number):
    """Other images of the same kind, of which a network gets some right."""
    return pixels.transpose(1, 0, 2) // 2 + noise(pixels, number) // 4


def noise(pixels, number):
    generator = np.random.default_rng(number)
    return generator.integers(0, 256, pixels.shape, dtype=np.uint8)


@pytest.fixture
def third(own_root, own_files):
    """A data set with images of its own and without an expert; its head is made from the base."""
    shutil.copytree(own_root / "shapes", own_root / OTHER)
    change(own_root, OTHER, apart)
    data = of(own_root)
    data.preprocess = MiniViT(**ENCODER).preprocess
    data.load()
    head = dict(make_heads(zoo_of(own_files), MiniViT(**ENCODER), data, [OTHER]))
    save_heads(load_heads(own_files.heads) | head, own_files.heads)
    return own_files


def of(root, **options):
    return MergeDataModule(
        **{"root": str(root), "tasks": list(TASKS), "out_of_domain": [OTHER], "batch_size": 8}
        | options
    )


@torch.no_grad()
def accuracy(weights, head, images):
    network, batch = MiniViT(**ENCODER).load(weights), images[list(range(len(images)))]
    logits = head(network(network.preprocess.finish(batch.inputs)))
    return float((logits.argmax(1) == batch.labels).float().mean())


# What is measured


def test_experts_have_their_mean_out_of_domain(trainer, encoder, third, own_root, tmp_path):
    data = of(own_root)
    evaluate = Evaluate(encoder, third.heads, third.base)
    rows = {row.name: row for row in zoo_of(third).bounds(data.tasks)}
    results = compare(trainer(), evaluate, data, rows, tmp_path, seed=0)
    assert results.tasks == (*TASKS, OTHER)
    heads, images = load_heads(third.heads), data.inputs(OTHER, "test")
    single = [accuracy(third.expert[task], heads[OTHER], images) for task in TASKS]
    assert single[0] != single[1]
    found = {name: row.accuracy[OTHER] for name, row in results.candidates.items()}
    assert found["individual"] == pytest.approx(sum(single) / 2)
    assert found["base"] == pytest.approx(accuracy(third.base, heads[OTHER], images))
    for task in TASKS:
        own = accuracy(third.expert[task], heads[task], data.inputs(task, "test"))
        assert results.candidates["individual"].accuracy[task] == pytest.approx(own)
    kept = Correctness.read(tmp_path)
    assert kept.fits(results)
    assert kept.right["individual"][OTHER].double().mean(1).tolist() == pytest.approx(single)
    note = results.candidates["individual"].note
    assert all(f"{100 * value:.1f} {task}" for task, value in zip(TASKS, single, strict=True))
    assert "out of domain, the mean of the seen tasks' networks" in note
    assert Results.from_json(tmp_path / "results.json") == results
    table = (tmp_path / "results.md").read_text()
    assert f"| {OTHER} (out of domain) | average | average out of domain |" in table


def test_the_average_is_over_the_domain(trainer, encoder, third, own_root):
    run = trainer()
    module = Evaluate(encoder, third.heads, third.expert["reds"])
    run.test(module, datamodule=of(own_root), verbose=False)
    found = module.measured["test"].accuracy
    assert run.callback_metrics["test/average"] == pytest.approx(
        sum(found[task] for task in TASKS) / 2
    )
    assert run.callback_metrics["test/average out of domain"] == pytest.approx(found[OTHER])
    run.validate(module, datamodule=of(own_root), verbose=False)
    assert set(module.measured["val"].accuracy) == set(TASKS)


def test_weights_per_task_say_nothing_out_of_domain(trainer, encoder, third, own_root):
    module = Evaluate(encoder, third.heads, dict(third.expert))
    with pytest.raises(InputError, match=r"model\.weights has files for .*, not for third"):
        trainer().test(module, datamodule=of(own_root), verbose=False)


# What it has no say in

MODULES = {
    "sml": lambda zoo: StatsMerging(MiniViT(**ENCODER), zoo, hidden=8, learning_rate=0.03),
    "transductive": lambda zoo: AdaMerging(
        MiniViT(**ENCODER), zoo, learning_rate=0.03, transductive=True
    ),
}


@pytest.mark.parametrize("kind", MODULES)
def test_coefficients_and_samples_are_those_without_it(trainer, third, own_root, kind):
    def learned(**options):
        torch.manual_seed(11)
        module, data = MODULES[kind](zoo_of(third)), of(own_root, **options)
        trainer().fit(module, datamodule=data)
        with torch.no_grad():
            return module.coefficients(), data.unlabelled(), set(module.held_out.inputs)

    without, sample, _ = learned(out_of_domain=[])
    assert (without - 0.3).abs().max() > 0.01
    for _ in range(2):
        found, seen, tasks = learned()
        assert torch.equal(found, without)
        assert torch.equal(seen, sample)
        assert tasks == set(TASKS)
        change(own_root, OTHER, noise)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_of_domain": ["reds"]}, r"data\.out_of_domain=\['reds'\]: reds is in data\.tasks"),
        ({"out_of_domain": "third"}, r"data\.out_of_domain='third' is not a group"),
        ({"out_of_domain": ["third", "third"]}, r"data\.out_of_domain names third twice"),
        ({"out_of_domain": ["nowhere"]}, r"task 'nowhere' has no data"),
    ],
)
def test_impossible_names_are_refused(root, options, message):
    with pytest.raises(InputError, match=message):
        of(root, **options).load()


def test_all_tasks_are_those_that_are_not_out_of_domain(third, own_root):
    assert set(of(own_root, tasks=[]).tasks) == set(TASKS)


@pytest.mark.parametrize("own", ["train", "test"])
@pytest.mark.parametrize("theirs", ["train", "test"])
def test_a_shared_image_is_refused(third, own_root, own, theirs):
    image = next(own_root.glob(f"reds/{theirs}/*/*.png"))
    shutil.copy(image, own_root / OTHER / own / "bar" / "copy.png")
    message = (
        rf"1 example\(s\) of 'third' \({own}\) are also in the {theirs} split of the task 'reds'"
    )
    with pytest.raises(InputError, match=message):
        of(own_root).load()


@pytest.mark.parametrize(
    ("classes", "dim", "message"),
    [
        (["bar", "box", "new"], 16, "has other classes than the data"),
        (["bar", "box", "dot"], 8, r"has \(classes, width\) \(3, 8\), the data .* \(3, 16\)"),
        (["bar", "box"], 16, r"has \(classes, width\) \(2, 16\)"),
    ],
)
def test_another_head_is_refused(trainer, encoder, third, own_root, classes, dim, message):
    from lightning_merge.models import class_mean_head

    labels = torch.arange(len(classes))
    head = class_mean_head(torch.randn(len(classes), dim), labels, len(classes), classes=classes)
    save_heads(load_heads(third.heads) | {OTHER: head}, third.heads)
    with pytest.raises(InputError, match=f"the head of 'third' {message}"):
        trainer().test(Evaluate(encoder, third.heads, third.base), of(own_root), verbose=False)


# The command


def test_fit_makes_the_head_measures_and_records(run, config, own_files, own_root, tmp_path):
    shutil.copytree(own_root / "shapes", own_root / OTHER)
    change(own_root, OTHER, apart)
    Path(own_files.heads).unlink()
    path = config(own_files, own_root, data__out_of_domain=[OTHER], trainer__max_epochs=1)
    result = run("fit", "--config", path)
    assert result.code == 0, result.err
    heads = load_heads(own_files.heads)
    assert heads[OTHER].classes == tuple(CLASSES["shapes"])
    results = Results.from_json(tmp_path / "run" / "results.json")
    assert results.out_of_domain == (OTHER,)
    recorded = json.loads((tmp_path / "run" / "splits.json").read_text())
    assert recorded["out_of_domain"] == [OTHER]
    assert set(recorded["tasks"]) == {*TASKS, OTHER}
    again = run("test", "--config", tmp_path / "run" / "config.yaml")
    assert "test/average out of domain: " in again.out, again.err
    shutil.copy(next(own_root.glob("reds/train/*/*.png")), own_root / OTHER / "test" / "bar")
    refused = run("fit", "--config", path, "--overwrite", "true")
    assert refused.code == 2
    assert "would not be out of domain" in refused.err


def test_another_data_set_is_measured_without_learning_anew(
    run, config, own_files, own_root, tmp_path, caplog
):
    """Its head goes into the file that finished runs depend on, of which they use other heads."""
    Path(own_files.heads).unlink()
    path = config(own_files, own_root, trainer__max_epochs=1)
    assert run("fit", "--config", path).code == 0
    assert run("fit", "--config", path, "--trainer.default_root_dir", tmp_path / "other").code == 0
    learned = (tmp_path / "run" / "coefficients.safetensors").read_bytes()
    shutil.copytree(own_root / "shapes", own_root / OTHER)
    change(own_root, OTHER, apart)
    more = ["--data.out_of_domain", f"[{OTHER}]", "--overwrite", "true"]
    caplog.clear()
    assert run("fit", "--config", path, *more).code == 0
    assert "making those of third" in caplog.text
    assert "going on from" in caplog.text
    assert (tmp_path / "run" / "coefficients.safetensors").read_bytes() == learned
    other = ["--config", tmp_path / "other" / "config.yaml"]
    assert run("test", *other).code == 0
    assert "nothing has changed" in run("fit", *other).out
