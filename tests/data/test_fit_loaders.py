"""What `fit` draws: of seen tasks alone, of chosen images, or of test images without labels."""

import json
from itertools import chain, islice

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_merge.core.errors import InputError
from lightning_merge.core.ranks import Ranks
from lightning_merge.data.fit_loaders import FitInputs, fit_loaders

# Lightning's pytree calls under newer releases of torch
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # few workers, no logger
]


def steps(data):
    return [batch for batch, _, _ in data.train_dataloader()]


def same(first, second):
    return list(first) == list(second) and all(
        torch.equal(*pair) for task in first for pair in zip(first[task], second[task], strict=True)
    )


class Recorder(LightningModule):
    """Notes every batch that fit gives it, and restricts its images at the start if asked."""

    def __init__(self, preprocess, transductive=False, restrict=None):
        super().__init__()
        self.preprocess, self.transductive, self.only = preprocess, transductive, restrict or {}
        self.steps = []
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def on_fit_start(self):
        for task, positions in self.only.items():
            self.trainer.datamodule.restrict(task, torch.tensor(positions))

    def training_step(self, batch, batch_idx):
        self.steps.append(batch)
        return self.weight * 0

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        assert (batch.labels >= 0).all()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def record(preprocess):
    """Fit a Recorder on some data; what it has seen, step by step."""

    def run(data, epochs=1, **options):
        torch.manual_seed(5)
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        module = Recorder(preprocess, **options)
        trainer.fit(module, datamodule=data)
        return module.steps

    return run


def joined(batches, task, field):
    return torch.cat([getattr(batch[task], field) for batch in batches])


# Unseen tasks


@pytest.mark.parametrize("sampling", ["equal", "proportional"])
@pytest.mark.parametrize("fit_on", ["train", "coefficients"])
def test_fit_is_as_if_there_were_no_unseen_tasks(make, sampling, fit_on):
    options = {"sampling": sampling, "fit_on": fit_on, "batch_size": 3, "unlabelled_inputs": 8}
    torch.manual_seed(3)
    some, without = make(unseen=["two"], **options), make(("one", "three"), **options)
    assert (some.tasks, some.seen) == (("one", "two", "three"), ("one", "three"))
    assert without.seen == without.tasks == ("one", "three")
    pairs = list(zip(steps(some), steps(without), strict=True))
    assert len(pairs) > 1
    assert all(same(*pair) for pair in pairs)
    assert torch.equal(some.unlabelled(), without.unlabelled())


def test_unseen_tasks_are_evaluated_and_named_in_the_order_of_tasks(make, tmp_path):
    data = make(unseen=["three", "one"])
    assert data.unseen == ("one", "three")
    for loaders in (data.test_dataloader(), data.val_dataloader(), data.predict_dataloader()):
        assert len(loaders) == len(data.tasks) == 3
    data.write_splits(tmp_path / "splits.json")
    written = json.loads((tmp_path / "splits.json").read_text())
    assert written["unseen"] == ["one", "three"]
    assert list(written["tasks"]) == ["one", "two", "three"]


def test_no_train_image_of_an_unseen_task_is_decoded_for_experts(make, record):
    data = make(unseen=["two"], fit_on="train", batch_size=4)
    seen = record(data)
    assert all(list(step) == ["one", "three"] for step in seen)
    assert ("two", "train") not in data.kept.made


# Test images without labels


@pytest.mark.parametrize(("fraction", "share"), [("all", 1), ("50%", 0.5)])
def test_a_transductive_module_gets_test_images_and_no_label(
    make, record, tmp_path, fraction, share
):
    data = make(loaded=False, unseen=["two"], coefficient_fraction=fraction, batch_size=2)
    seen = record(data, epochs=2, transductive=True)
    data.write_splits(tmp_path / "splits.json")
    written = json.loads((tmp_path / "splits.json").read_text())
    assert written["transductive"] is True
    assert "transductive_rows" not in written["tasks"]["two"]
    for task in ("one", "three"):
        rows = written["tasks"][task]["transductive_rows"]
        test = data.inputs(task, "test")
        assert len(rows) == round(share * len(test))
        assert (joined(seen, task, "labels") == -1).all()
        index = joined(seen, task, "index")
        assert set(index.tolist()) == set(range(len(rows)))
        expected = test[torch.tensor(rows)[index].tolist()]
        assert torch.equal(joined(seen, task, "inputs"), expected.inputs)
        labels = torch.cat([batch.labels for batch in data.shares(task, "test")])
        assert torch.equal(labels, test.examples.labels)
        assert (labels >= 0).all()


def test_without_being_asked_no_test_image_is_fitted_on(make, record):
    data = make(batch_size=2)
    record(data, transductive=True)
    for step in record(data):  # the same data, another module
        for task, batch in step.items():
            expected = data.inputs(task, "coefficients")[batch.index.tolist()]
            assert torch.equal(batch.inputs, expected.inputs)
            assert torch.equal(batch.labels, expected.labels)


def test_validation_stays_held_out_images(make, record):
    data = make(batch_size=2)
    record(data, transductive=True)
    data.trainer = None
    for task, loader in zip(data.tasks, data.val_dataloader(), strict=True):
        assert loader.dataset is data.inputs(task, "validation")


def test_transductive_and_train_images_contradict_each_other(make, record):
    with pytest.raises(InputError, match=r"data\.fit_on='train', but the model is transductive"):
        record(make(fit_on="train"), transductive=True)


# Chosen images

CHOSEN = {"one": [3, 0], "two": [11, 2, 5, 7, 8]}


def test_only_chosen_images_are_drawn_and_their_index_stays(make, record):
    data = make(batch_size=2)
    seen = record(data, epochs=3, restrict=CHOSEN)
    for task in data.tasks:
        images = data.inputs(task, "coefficients")
        chosen = CHOSEN.get(task, range(len(images)))
        index = joined(seen, task, "index")
        assert set(index.tolist()) == set(chosen)
        assert torch.equal(joined(seen, task, "inputs"), images[index.tolist()].inputs)
        assert torch.equal(joined(seen, task, "labels"), images.labels[index])
        assert len(images) > len(CHOSEN.get(task, []))  # the part itself stays whole
        assert len(torch.cat([b.index for b in data.shares(task, "coefficients")])) == len(images)


def test_all_images_in_any_order_are_no_restriction(make, record):
    whole = record(make(batch_size=2), epochs=2)
    every = {"one": [2, 3, 1, 0], "two": list(range(12))[::-1], "three": [5, 4, 3, 2, 1, 0]}
    restricted = record(make(batch_size=2), epochs=2, restrict=every)
    assert all(same(*pair) for pair in zip(whole, restricted, strict=True))


def test_the_next_fit_starts_with_all_images(make, record):
    data = make(batch_size=2)
    record(data, restrict=CHOSEN)
    again, fresh = record(data), record(make(batch_size=2))
    assert all(same(*pair) for pair in zip(again, fresh, strict=True))


def test_proportional_sizes_are_those_of_what_is_fitted_on(make):
    data = make(batch_size=9, sampling="proportional")
    for task, positions in {"one": [0, 1, 2], "two": [0, 3, 9], "three": [1, 2, 5]}.items():
        data.restrict(task, torch.tensor(positions))
    assert [len(batch.labels) for batch in steps(data)[0].values()] == [3, 3, 3]


@pytest.mark.parametrize(
    ("task", "positions", "message"),
    [
        ("one", [], "'one': none of its 4 examples is left to fit on"),
        ("one", [0, 4], r"'one': positions must be in \[0, 4\)"),
        ("one", [-1], r"'one': positions must be in \[0, 4\)"),
        ("two", [0], r"data\.seen='two': choose one of one, three"),
    ],
)
def test_bad_choices(make, task, positions, message):
    with pytest.raises(InputError, match=message):
        make(unseen=["two"]).restrict(task, torch.tensor(positions, dtype=torch.long))


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_divide_what_was_chosen(make, processes):
    """A step of N processes is that of one with N times the batch; a tiny task goes to all."""
    data = make()
    chosen = {"one": [1], "two": [11, 2, 5, 7, 8, 1], "three": [0, 1, 2, 3, 4, 5]}
    images = {
        task: FitInputs(data.inputs(task, "coefficients"), torch.tensor(positions))
        for task, positions in chosen.items()
    }

    def taken(size, ranks):
        loaders = fit_loaders(images, size, proportional=False, seed=1, num_workers=0, ranks=ranks)
        return [
            {task: b.index.tolist() for task, b in batch.items()}
            for batch, _, _ in islice(loaders, 4)
        ]

    alone = taken(processes, Ranks(0, 1))
    every = [taken(1, Ranks(rank, processes)) for rank in range(processes)]
    for whole, *parts in zip(alone, *every, strict=True):
        for task in ("two", "three"):
            assert list(chain(*(part[task] for part in parts))) == whole[task]
        assert all(part["one"] == whole["one"] == [1] for part in parts)
