"""A run that was stopped, however and wherever, ends with the bits of one that was not."""

import signal

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_zoo import ENCODER, TASKS

from lightning_merge.data import MergeDataModule
from lightning_merge.data.augment import Augment
from lightning_merge.models import MiniViT
from lightning_merge.modules import AdaMerging, FineTune, StatsMerging


class Steps(Callback):
    """Notes every batch that is trained on, and stops before a certain one."""

    def __init__(self, stop=None):
        self.stop, self.seen = stop, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if len(self.seen) == self.stop:
            raise KeyboardInterrupt
        index = {task: part.index.tolist() for task, part in batch.items()}
        self.seen.append((trainer.current_epoch, batch_idx, index))


def module_of(kind, encoder, files, zoo, folder):
    """Return a module of a kind that writes into a folder."""
    if kind is FineTune:
        return FineTune(
            encoder, str(folder / "out.safetensors"), files.base, files.heads,
            augment=Augment(), overwrite=True,
        )  # fmt: skip
    if kind is StatsMerging:
        return StatsMerging(encoder, zoo, hidden=4, learning_rate=0.1, step_size=2)
    return AdaMerging(encoder, zoo, learning_rate=0.1)


@pytest.fixture
def learn(trainer, files, zoo, root, tmp_path):
    """Fit a module of a kind; return the file that it writes and the batches that it saw."""

    def call(kind, options, folder, stop=None, workers=0, callback=None):
        torch.manual_seed(3)
        encoder = MiniViT(**ENCODER)
        train = kind is FineTune
        size = {"batch_size": 9} if train else {"batch_size": 2}
        data = MergeDataModule(
            root=str(root), tasks=list(TASKS), fit_on="train" if train else "coefficients",
            num_workers=workers, cache_gib=0 if workers else 1, **size,
        )  # fmt: skip
        module = module_of(kind, encoder, files, zoo, folder)
        steps, last = Steps(stop), folder / "last.ckpt"
        save = ModelCheckpoint(
            folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        callbacks = [steps, save, *([callback] if callback else [])]
        run = trainer(
            **{"max_epochs": -1, **options}, callbacks=callbacks,
            enable_checkpointing=True, default_root_dir=str(folder),
        )  # fmt: skip
        found = str(last) if last.exists() else None
        before = signal.getsignal(signal.SIGINT)
        try:
            run.fit(module, datamodule=data, ckpt_path=found, weights_only=False)
        except SystemExit:
            return None, steps.seen
        finally:
            signal.signal(signal.SIGINT, before)
        file = folder / ("out.safetensors" if train else "coefficients.safetensors")
        return file.read_bytes(), steps.seen

    return call


def check(learn, folder, kind, options, stops, workers=0):
    """Stop a run before some of its batches, let each go on, and compare with an unbroken one."""
    whole, seen = learn(kind, options, folder / "whole", workers=workers)
    assert len(seen) > 1
    for stop in stops if stops else range(1, len(seen)):
        none, first = learn(kind, options, folder / f"{stop}", stop, workers)
        found, rest = learn(kind, options, folder / f"{stop}", workers=workers)
        assert none is None
        assert first == seen[:stop]
        assert rest == seen[len(seen) - len(rest) :]  # the epoch that was begun, once more
        assert len(rest) >= len(seen) - stop
        assert found == whole


def check_later_end(learn, folder, kind, ends, options, workers=0):
    """Let a run that has ended go on to a later end, and compare with one that has that end."""
    last = {**options, **ends[-1]}
    whole, seen = learn(kind, last, folder / "whole", workers=workers)
    parts = [learn(kind, {**options, **end}, folder / "parts", workers=workers) for end in ends]
    assert [batch for _, part in parts for batch in part] == seen
    assert parts[-1][0] == whole


ENDS = [
    {"max_epochs": 3},
    {"max_steps": 7},
    {"max_steps": 10},
    {"max_epochs": 3, "max_steps": 12},
    {"max_epochs": 2, "max_steps": 12},
]
WAYS = [
    {},
    {"accumulate_grad_batches": 2},
    {"limit_train_batches": 3},
    {"limit_train_batches": 0.5},
    {"accumulate_grad_batches": 3, "limit_train_batches": 4},
    {"val_check_interval": 2},
    {"val_check_interval": 2, "check_val_every_n_epoch": None},
    {"check_val_every_n_epoch": 2},
]


@pytest.mark.parametrize(
    ("kind", "options", "stop"),
    [
        (AdaMerging, {"max_steps": 9}, 6),
        (AdaMerging, {"max_steps": 5, "accumulate_grad_batches": 2}, 8),
        (StatsMerging, {"max_epochs": 3, "max_steps": 12, "limit_train_batches": 4}, 7),
        (StatsMerging, {"max_epochs": 3}, 11),
        (FineTune, {"max_steps": 9}, 6),
        (FineTune, {"max_steps": 9, "val_check_interval": 2}, 2),
    ],
)
def test_a_stopped_run_ends_as_one_that_was_not(learn, tmp_path, kind, options, stop):
    check(learn, tmp_path, kind, options, [stop])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AdaMerging, StatsMerging, FineTune])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ENDS)
def test_wherever_it_stops(learn, tmp_path, kind, end, way):
    check(learn, tmp_path, kind, {**end, **way}, None)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker:UserWarning")
def test_images_that_workers_load_are_the_same(learn, tmp_path):
    check(learn, tmp_path, AdaMerging, {"max_steps": 8}, [6], workers=2)


@pytest.mark.parametrize(
    ("kind", "ends", "options"),
    [
        (AdaMerging, [{"max_steps": 3}, {"max_steps": 8}, {"max_steps": 9}], {}),
        (AdaMerging, [{"max_steps": 5}, {"max_steps": 6}], {}),
        (StatsMerging, [{"max_epochs": 1}, {"max_epochs": 3}], {}),
        (StatsMerging, [{"max_epochs": 1}, {"max_steps": 13}, {"max_epochs": 3}], {}),
        (AdaMerging, [{"max_steps": 2}, {"max_steps": 4}], {"accumulate_grad_batches": 2}),
        (AdaMerging, [{"max_steps": 2}, {"max_steps": 5}], {"val_check_interval": 2}),
    ],
)
def test_a_run_goes_on_to_a_later_end(learn, tmp_path, kind, ends, options):
    check_later_end(learn, tmp_path, kind, ends, options)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", [1, 2, 4, 5, 7])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker:UserWarning")
def test_whatever_the_first_end_was(learn, tmp_path, first, way, workers):
    ends = [{"max_steps": first}, {"max_steps": 9}]
    check_later_end(learn, tmp_path, AdaMerging, ends, way, workers)


class EndsEarly(Callback):
    """Ends the run within an epoch, between two steps of accumulated gradients."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = (trainer.current_epoch, batch_idx) == (1, 2)


def test_gradients_that_wait_for_a_step_are_taken_again(learn, tmp_path):
    options = {"max_epochs": 3, "accumulate_grad_batches": 2}
    whole, seen = learn(AdaMerging, options, tmp_path / "whole")
    _, first = learn(AdaMerging, options, tmp_path / "parts", callback=EndsEarly())
    found, rest = learn(AdaMerging, options, tmp_path / "parts")
    assert [*first[:-1], *rest] == seen  # the third batch of the epoch twice
    assert first[-1] == rest[0]
    assert found == whole
