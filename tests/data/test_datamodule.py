import json
import shutil

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_merge.core.errors import InputError
from lightning_merge.data import Batch, MergeDataModule
from lightning_merge.data.dataset import TaskInputs
from lightning_merge.models.image_preprocess import ImagePreprocess

# Lightning's pytree calls under newer releases of torch
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


def rows(data, task, part):
    return data.inputs(task, part).rows.tolist()


# Splits


def test_parts_are_disjoint_stratified_and_whole(make):
    data = make(validation_fraction=0.2)
    for task in data.tasks:
        parts = [rows(data, task, part) for part in ("train", "validation")]
        images = data.inputs(task, "train").examples
        assert sorted(row for part in parts for row in part) == list(range(len(images)))
        held_out = data.inputs(task, "validation").labels.bincount().float()
        assert torch.equal(held_out, (0.2 * images.labels.bincount()).round())


def test_a_division_does_not_depend_on_other_tasks(make):
    every, reverse, alone = make(), make(("three", "two", "one")), make(("two",))
    for part in ("train", "validation", "coefficients", "test"):
        assert rows(every, "two", part) == rows(reverse, "two", part) == rows(alone, "two", part)
    assert every.digest("two") == reverse.digest("two") == alone.digest("two")
    assert every.record["two"] == alone.record["two"]


def test_the_seed_divides(make):
    first, other = make(), make(split_seed=1)
    assert rows(first, "two", "validation") == rows(make(), "two", "validation")
    assert rows(first, "two", "validation") != rows(other, "two", "validation")
    assert first.digest("two") != other.digest("two")


@pytest.mark.parametrize(
    ("given", "share"),
    [("1%", 0.01), ("5%", 0.05), ("12.5%", 0.125), ("all", 1), ("0.5", 0.5), (0.3, 0.3), (1, 1)],
)
def test_coefficient_fractions(make, given, share):
    data = make(coefficient_fraction=given)
    for task in data.tasks:
        held_out, few = rows(data, task, "validation"), rows(data, task, "coefficients")
        assert len(few) == max(1, round(share * len(held_out)))
        assert set(few) <= set(held_out)


def test_splits_are_recorded(make, tmp_path):
    data = make(coefficient_fraction="5%")
    data.write_splits(tmp_path / "run" / "splits.json")
    written = json.loads((tmp_path / "run" / "splits.json").read_text())
    assert written["split_seed"] == 0
    assert written["coefficient_fraction"] == 0.05
    assert list(written["tasks"]) == ["one", "two", "three"]
    two = written["tasks"]["two"]
    assert two["classes"] == ["x", "y", "z"]
    assert two["validation_rows"] == rows(data, "two", "validation")
    assert two["coefficient_rows"] == rows(data, "two", "coefficients")
    assert [two[p]["images"] for p in ("train", "validation", "test")] == [48, 12, 15]
    assert len({two[part]["digest"] for part in ("train", "validation", "test")}) == 3
    assert not {"unseen", "transductive"} & set(written)


def test_every_file_is_read_once(make, monkeypatch):
    data, read = make(loaded=False), []
    load = data.source.load
    monkeypatch.setattr(data.source, "load", lambda *a: read.append(a) or load(*a))
    data.load(test=False)
    data.load()
    data.load()
    data.load(test=None)
    assert len(read) == len(set(read)) == 6


def _copy_into(root, split, count=1):
    for i in range(count):
        source = root / "one" / "train" / "a" / f"{i}.png"
        shutil.copy(source, root / "one" / split / "a" / f"copy{i}.png")


def test_a_copy_in_test_is_an_error_or_left_out(make, root):
    _copy_into(root, "test", 3)
    with pytest.raises(InputError, match=r"'one': .* example\(s\) are in both .* and test"):
        make()
    data = make(duplicates="drop")
    assert data.record["one"]["left_out"] == 3
    assert data.record["one"]["test"]["images"] == 11
    assert not {0, 1, 2} & {*rows(data, "one", "train"), *rows(data, "one", "validation")}
    assert data.record["two"]["left_out"] == 0


def test_copies_within_train_stay_on_one_side(make, root):
    _copy_into(root, "train", 10)
    data = make()
    assert data.record["one"]["left_out"] == 0
    hashes = data.division._hashes["one", "train"]
    train, held_out = (rows(data, "one", part) for part in ("train", "validation"))
    assert not {hashes[i] for i in train} & {hashes[i] for i in held_out}


# Images


def test_images_draw_on_one_budget(make):
    data = make(cache_gib=33 * 3 * 64 / 2**30)
    sizes = {task: len(data.inputs(task, "train")) for task in ("one", "three", "two")}
    assert sizes == {"one": 16, "three": 24, "two": 48}
    assert [data.inputs(task, "train").cache for task in sizes] == [True, False, False]


def test_another_encoder_decodes_anew(make):
    data = make()
    assert data.inputs("one", "test")[0].inputs.shape[-1] == 8
    data.preprocess = ImagePreprocess(size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert data.inputs("one", "test")[0].inputs.shape[-1] == 16


def test_unlabelled_inputs_are_drawn_evenly_from_held_out_ones(make):
    data = make(unlabelled_inputs=12)
    sampled = data.unlabelled()
    assert sampled.shape == (12, 3, 8, 8)
    assert sampled.dtype == torch.uint8
    for task, part in zip(data.tasks, sampled.split(4), strict=True):
        images = data.inputs(task, "validation")
        pool = {
            image.numpy().tobytes()
            for image in images.__getitems__(list(range(len(images)))).inputs
        }
        chosen = {image.numpy().tobytes() for image in part}
        assert len(chosen) == 4
        assert chosen <= pool
    reverse = make(("three", "two", "one"), unlabelled_inputs=12).unlabelled()
    assert torch.equal(torch.cat(sampled.split(4)[::-1]), reverse)


def test_only_some_tasks_are_looked_at(make):
    data = make()
    data.only(["three", "one", "another"])
    assert data.tasks == data.seen == ("one", "three")
    assert set(data.unlabelled_by_task()) == {"one", "three"}
    with pytest.raises(InputError, match=r"names none of two"):
        data.only(["two"])


def test_unlabelled_inputs_are_as_many_as_there_are(make):
    assert len(make(unlabelled_inputs=1000).unlabelled()) == 4 + 12 + 6


def test_loaders_give_each_image_once_in_the_order_of_tasks(make):
    data = make(eval_batch_size=4)
    for task, loader in zip(data.tasks, data.test_dataloader(), strict=True):
        batches = list(loader)
        assert torch.cat([b.index for b in batches]).tolist() == list(range(len(loader.dataset)))
        assert torch.equal(torch.cat([b.labels for b in batches]), data.inputs(task, "test").labels)


def fit_batches(data):
    return [batch for batch, _, _ in data.train_dataloader()]


def test_a_step_has_a_batch_of_every_task(make):
    data = make(fit_on="train", batch_size=5)
    steps = fit_batches(data)
    assert len(steps) == 48 // 5
    for step in steps:
        assert list(step) == ["one", "two", "three"]
        assert [len(batch.labels) for batch in step.values()] == [5, 5, 5]
        for task, batch in step.items():
            assert isinstance(batch, Batch)
            assert torch.equal(batch.labels, data.inputs(task, "train").labels[batch.index])


def test_proportional_sampling(make):
    steps = fit_batches(make(fit_on="train", batch_size=22, sampling="proportional"))
    assert [len(batch.labels) for batch in steps[0].values()] == [4, 12, 6]
    assert len(steps) == 4


def test_small_tasks_still_have_a_batch(make):
    steps = fit_batches(make(fit_on="coefficients", coefficient_fraction="1%", batch_size=16))
    assert [len(batch.labels) for batch in steps[0].values()] == [1, 1, 1]


# With a Trainer


class Watch(LightningModule):
    """Notes which images it sees."""

    def __init__(self, preprocess):
        super().__init__()
        self.preprocess, self.seen = preprocess, []
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        torch.rand(len(self.seen) % 3)  # draws of a model must not change the order of images
        self.seen.append([b.index.tolist() for b in batch.values()])
        return self.weight * 0

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(data, preprocess, epochs, folder, ckpt=None):
    torch.manual_seed(5)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    watch = Watch(preprocess)
    trainer.fit(watch, datamodule=data, ckpt_path=ckpt, weights_only=False)
    trainer.save_checkpoint(folder / "last.ckpt")
    return watch.seen


@pytest.mark.filterwarnings("ignore::UserWarning")  # few workers, no logger
def test_a_resumed_run_sees_the_same_images(make, preprocess, tmp_path):
    whole = fit(make(loaded=False, batch_size=2), preprocess, 3, tmp_path)
    first = fit(make(loaded=False, batch_size=2), preprocess, 1, tmp_path)
    rest = fit(make(loaded=False, batch_size=2), preprocess, 3, tmp_path, tmp_path / "last.ckpt")
    assert first + rest == whole
    assert len(whole) == 3 * 6
    assert whole[:6] != whole[6:12]


@pytest.mark.parametrize(
    ("fit_on", "stage", "parts"),
    [
        ("coefficients", "fit", {"validation", "test"}),
        ("train", "fit", {"train", "validation"}),
        ("train", "validate", {"validation"}),
        ("train", "test", {"test"}),
        ("train", "predict", {"test"}),
    ],
)
def test_setup_decodes_what_its_stage_needs(make, fit_on, stage, parts):
    data = make(loaded=False, fit_on=fit_on)
    data.setup(stage)
    assert {part for _, part in data.kept.made} == parts
    assert all(bool(images.decoded.done.all()) for images in data.kept.made.values())


def test_a_broken_test_image_shows_before_coefficients_are_fitted(make, root):
    data = make(loaded=False)
    path = root / "three" / "test" / "b" / "1.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:50] + b"\0" * 8 + whole[58:])
    with pytest.raises(InputError, match=f"{path} is not a readable image"):
        data.setup("fit")


def test_a_split_of_test_images_is_wanted_where_they_are_measured(make, root):
    shutil.rmtree(root / "one" / "test")
    make(loaded=False, fit_on="train").setup("fit")
    with pytest.raises(InputError, match="'one' has no data"):
        make(loaded=False).setup("fit")


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit_on": "test"}, r"data\.fit_on='test'.*meaningless"),
        ({"fit_on": "validation"}, r"data\.fit_on='validation': choose one of"),
        ({"sampling": "fair"}, r"data\.sampling='fair'"),
        ({"duplicates": "keep"}, r"data\.duplicates='keep'"),
        ({"source": "zip"}, r"data\.source='zip'"),
        ({"validation_fraction": 0.0}, r"data\.validation_fraction=0\.0"),
        ({"validation_fraction": 1.0}, r"data\.validation_fraction=1\.0"),
        ({"coefficient_fraction": "10"}, r"data\.coefficient_fraction='10'.*'1%' or '5%'"),
        ({"coefficient_fraction": "some"}, r"data\.coefficient_fraction='some'"),
        ({"coefficient_fraction": 0.0}, r"data\.coefficient_fraction=0\.0"),
        ({"batch_size": 0}, r"data\.batch_size=0 must be at least 1"),
        ({"unlabelled_inputs": 0}, r"data\.unlabelled_inputs=0 must be at least 1"),
        ({"num_workers": -1}, r"data\.num_workers=-1"),
        ({"cache_gib": -1.0}, r"data\.cache_gib=-1"),
        ({"tasks": ["one", "two", "one"]}, r"names one twice"),
        ({"tasks": "one"}, r"data\.tasks='one' is not a group of tasks.* or a list: \[one\]"),
        ({"tasks": ["one/two"]}, r"'one/two' cannot name a task"),
        ({"tasks": [".."]}, r"'\.\.' cannot name a task"),
        ({"tasks": ["keys"]}, r"'keys' cannot name a task"),
        ({"tasks": [""]}, r"'' cannot name a task"),
        ({"unseen": ["four", "two"]}, r"data\.unseen names four, not among data\.tasks=.*'three'"),
        ({"unseen": "two"}, r"data\.unseen='two' is not a group of tasks.* or a list: \[two\]"),
        ({"unseen": ["two", "three", "one"]}, r"data\.unseen=.* leaves none of data\.tasks"),
    ],
)
def test_bad_values(make, options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_a_root_without_tasks(tmp_path):
    with pytest.raises(InputError, match="holds no tasks"):
        MergeDataModule(str(tmp_path))
    with pytest.raises(InputError, match=r"data\.root='.*none' is not a folder"):
        MergeDataModule(str(tmp_path / "none"))


def test_a_task_too_small_to_divide(make, make_task):
    make_task("single", train=1)
    with pytest.raises(
        InputError, match="none of the 2 images in 2 classes of task 'single' for val"
    ):
        make(("single",))


def test_images_need_a_task_a_part_and_a_preprocessing(make, root):
    for task, part in [("four", "test"), ("one", "val")]:
        with pytest.raises(InputError, match="choose one of"):
            make().inputs(task, part)
    with pytest.raises(InputError, match="preprocess is not set"):
        MergeDataModule(str(root)).inputs("one", "test")


# Real data


@pytest.mark.shared
def test_the_real_subsets_have_the_counts_of_their_sources(shared):
    counts = json.loads((shared / "data" / "SOURCES.json").read_text())
    eight = ["sun397", "cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd"]
    data = MergeDataModule(str(shared / "data"), tasks=eight)
    data.preprocess = ImagePreprocess(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    data.load()
    for task in eight:
        parts = {
            part: data.record[task][part]["images"] for part in ("train", "validation", "test")
        }
        assert parts["train"] + parts["validation"] == counts[task]["train"]
        assert parts["test"] == counts[task]["test"]
        assert len(data.classes[task]) == counts[task]["classes"]
        images = data.inputs(task, "test")
        assert isinstance(images, TaskInputs)
        assert images.__getitems__([0, len(images) - 1]).inputs.float().std() > 0
    assert len(data.unlabelled()) == 128
