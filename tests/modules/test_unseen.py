"""Tasks that are evaluated only: nothing of them is fitted on, and nothing is chosen by them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_zoo import ENCODER, TASKS, zoo_of

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.data import MergeDataModule
from lightning_merge.evaluation.candidates import Candidate
from lightning_merge.evaluation.results import Results
from lightning_merge.models.head_files import load_heads, save_heads
from lightning_merge.models.mini_vit import MiniViT
from lightning_merge.modules import AdaMerging, Evaluate, StatsMerging
from lightning_merge.modules.compare import compare


@torch.no_grad()
def accuracy(weights, head, images):
    """Share of a part's images that weights get right."""
    network, batch = MiniViT(**ENCODER).load(weights), images[list(range(len(images)))]
    logits = head(network(network.preprocess.finish(batch.inputs)))
    return float((logits.argmax(1) == batch.labels).float().mean())


@pytest.fixture(scope="module")
def networks(files, root, tmp_path_factory):
    """Two networks, of which each is better than the other on one task's held-out images."""
    base, heads = open_checkpoint(files.base), load_heads(files.heads)
    generator, folder = torch.Generator().manual_seed(0), tmp_path_factory.mktemp("networks")
    data = MergeDataModule(root=str(root), tasks=list(TASKS))
    data.preprocess = MiniViT(**ENCODER).preprocess
    found = {}
    for i in range(40):
        file = folder / f"{i}.safetensors"
        changed = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        save_checkpoint(changed, file)
        score = [accuracy(file, heads[task], data.inputs(task, "validation")) for task in TASKS]
        for other, (a, b) in found.items():
            if (a > score[0] and b < score[1]) or (a < score[0] and b > score[1]):
                order = [other, file] if a > score[0] else [file, other]
                return dict(zip(TASKS, order, strict=True))
        found[file] = score
    raise AssertionError("no two networks differ as they should")


@pytest.fixture
def choose(trainer, files, networks, tmp_path):
    """Compare the two networks as options of one candidate: choose(data) -> results."""

    def run(data, name="run"):
        folder = tmp_path / name
        folder.mkdir()
        options = {
            f"best on {task}": Candidate("tuned", Path(shutil.copy(file, folder / task)))
            for task, file in networks.items()
        }
        candidate = Candidate("tuned", folder / "tuned.safetensors", options=options)
        evaluate = Evaluate(MiniViT(**ENCODER), files.heads, files.base)
        return compare(trainer(), evaluate, data, {"tuned": candidate}, folder, seed=0)

    return run


def tasks_of(root, *tasks, **options):
    return MergeDataModule(root=str(root), tasks=list(tasks or TASKS), batch_size=8, **options)


def poison(root, task):
    """Put noise in the place of a task's train images, with its classes in another order."""
    noise = np.random.default_rng(1)
    for file in sorted(root.glob(f"{task}/train/*/*.png")):
        Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    folders = sorted((root / task / "train").iterdir())
    for folder in folders:
        folder.rename(folder.with_name(f"_{folder.name}"))
    for folder, name in zip(folders, [*folders[1:], folders[0]], strict=True):
        folder.with_name(f"_{folder.name}").rename(name)


# What is chosen


@pytest.mark.parametrize("seen", TASKS)
def test_seen_tasks_alone_choose(choose, root, networks, seen, tmp_path):
    unseen = [task for task in TASKS if task != seen]
    results = choose(tasks_of(root, unseen=unseen))
    row = results.candidates["tuned"]
    assert row.note == f"best on {seen} of 2 chosen on the held-out examples of the seen tasks"
    alone = choose(tasks_of(root, seen), "alone").candidates["tuned"]
    assert alone.note == f"best on {seen} of 2 chosen on the held-out examples"
    assert row.accuracy[seen] == alone.accuracy[seen]
    assert set(row.accuracy) == set(TASKS)
    assert results.unseen == tuple(unseen)
    assert Results.from_json(tmp_path / "run" / "results.json") == results
    table = (tmp_path / "run" / "results.md").read_text()
    assert f"| {unseen[0]} (unseen) |" in table
    assert "| average | average seen | average unseen |" in table


def test_held_out_images_and_labels_of_unseen_tasks_have_no_say(choose, own_root):
    before = choose(tasks_of(own_root, unseen=["shapes"]), "before")
    poison(own_root, "shapes")
    after = choose(tasks_of(own_root, unseen=["shapes"]), "after")
    assert after.candidates == before.candidates


def test_the_average_that_may_choose_is_over_seen_tasks(trainer, encoder, files, root):
    run, data = trainer(), tasks_of(root, unseen=["shapes"])
    module = Evaluate(encoder, files.heads, files.expert["reds"])
    run.validate(module, datamodule=data, verbose=False)
    found = module.measured["val"].accuracy
    assert found["reds"] != found["shapes"]
    assert run.callback_metrics["val/average"] == pytest.approx(found["reds"])
    run.test(module, datamodule=data, verbose=False)
    mean = sum(module.measured["test"].accuracy.values()) / 2
    assert run.callback_metrics["test/average"] == pytest.approx(mean)


@pytest.mark.parametrize("chosen", [False, True])
def test_transductive_candidates_are_marked(trainer, encoder, files, root, tmp_path, chosen):
    file = Path(shutil.copy(files.base, tmp_path / "option"))
    options = {"only": Candidate("ada", file, transductive=True)} if chosen else None
    given = Candidate("ada", file, options=options, transductive=not chosen)
    candidates = {"ada": given, "ties": Candidate("ties", Path(files.expert["reds"]))}
    if chosen:
        candidates["ada"] = Candidate("ada", tmp_path / "ada", options=options)
    evaluate = Evaluate(encoder, files.heads, files.base)
    results = compare(trainer(), evaluate, tasks_of(root), candidates, tmp_path, seed=0)
    marked = {name: row.transductive for name, row in results.candidates.items()}
    assert marked == {"ada": True, "ties": False}
    assert "| ada † |" in (tmp_path / "results.md").read_text()


# What is learned


@pytest.fixture
def third(own_root, own_files):
    """A zoo with a task "third", images of its own, an expert and a head."""
    for folder in own_root.glob("reds/*/*"):
        target = own_root / "third" / folder.relative_to(own_root / "reds")
        target.mkdir(parents=True)
        for image in folder.iterdir():
            pixels = np.asarray(Image.open(image))[:, ::-1] // 2
            Image.fromarray(pixels).save(target / image.name)
    heads = load_heads(own_files.heads)
    save_heads(heads | {"third": heads["reds"]}, own_files.heads)
    shutil.copy(own_files.expert["shapes"], own_files.folder / "third.safetensors")
    return own_files


MODULES = {
    "sml": lambda encoder, zoo: StatsMerging(encoder, zoo, hidden=8, learning_rate=0.03),
    "adamerging": lambda encoder, zoo: AdaMerging(encoder, zoo, learning_rate=0.03),
    "transductive": lambda encoder, zoo: AdaMerging(
        encoder, zoo, learning_rate=0.03, transductive=True
    ),
}


@pytest.mark.parametrize("kind", MODULES)
def test_coefficients_are_those_without_the_unseen_task(trainer, third, own_root, kind):
    def learned(*tasks, **options):
        torch.manual_seed(11)
        module = MODULES[kind](MiniViT(**ENCODER), zoo_of(third))
        trainer().fit(module, datamodule=tasks_of(own_root, *tasks, **options))
        with torch.no_grad():
            return module.coefficients()

    without = learned(*TASKS)
    held_out = learned("reds", "third", "shapes", unseen=["third"])
    poison(own_root, "third")
    poisoned = learned("reds", "third", "shapes", unseen=["third"])
    assert torch.equal(held_out, without)
    assert torch.equal(poisoned, without)
    assert (without - 0.3).abs().max() > 0.01


def test_transductive_coefficients_follow_from_test_images_alone(trainer, own_files, own_root):
    def learned(kind):
        torch.manual_seed(11)
        module = MODULES[kind](MiniViT(**ENCODER), zoo_of(own_files))
        trainer().fit(module, datamodule=tasks_of(own_root))
        with torch.no_grad():
            return module.coefficients()

    before, held_out = learned("transductive"), learned("adamerging")
    assert not torch.equal(before, held_out)
    for task in TASKS:
        for image in sorted(own_root.glob(f"{task}/train/*/*.png")):
            pixels = np.asarray(Image.open(image)) // 3
            Image.fromarray(pixels).save(image)
    assert torch.equal(learned("transductive"), before)
    assert not torch.equal(learned("adamerging"), held_out)
