"""Options of Lightning's Trainer that cannot be followed: one line, before anything is learned."""

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tiny_zoo import TASKS, model_of

from lightning_merge.core.errors import InputError
from lightning_merge.core.ranks import Ranks
from lightning_merge.data import MergeDataModule
from lightning_merge.data.fit_loaders import fit_loaders
from lightning_merge.data.sizes import count_batches
from lightning_merge.models import MiniViT
from lightning_merge.modules import CoefficientModule, FineTune
from lightning_merge.runs.refusals import refusals

CALLBACKS = "lightning.pytorch.callbacks."
GRID = {
    "class_path": "lightning_merge.callbacks.MergeCallback",
    "init_args": {"method": {"class_path": "TaskArithmetic"}, "grid": {"scale": [0.1, 0.5]}},
}


def callback(name, **options):
    chosen = [w for k, v in options.items() for w in (f"--trainer.callbacks.{k}", str(v))]
    return ["--trainer.callbacks+", CALLBACKS + name, *chosen]


def trainer(name, value):
    return [f"--trainer.{name}", str(value)]


BOTH = {
    "limit_train_batches 0.01": (
        trainer("limit_train_batches", 0.01),
        "limit_train_batches=0.01 is less than one batch",
    ),
    "val_check_interval 50": (trainer("val_check_interval", 50), "val_check_interval=50: an epoch"),
    "val_check_interval 0": (trainer("val_check_interval", 0), "val_check_interval=0 must be ab"),
    "accumulate 0": (trainer("accumulate_grad_batches", 0), "accumulate_grad_batches=0 must be"),
    "validation -1": (trainer("check_val_every_n_epoch", -1), "check_val_every_n_epoch=-1 must"),
    "overfit": (trainer("overfit_batches", 1), "overfit_batches=1: "),
    "clip": (trainer("gradient_clip_val", -1), "gradient_clip_val=-1 must be at least 0"),
    "min_epochs": (trainer("min_epochs", 9), "min_epochs=9 is above trainer.max_epochs=1"),
    "min_steps": ([*trainer("min_steps", 9), *trainer("max_steps", 3)], "min_steps=9 is above"),
    "sanity": (trainer("num_sanity_val_steps", -3), "num_sanity_val_steps=-3 must be at least -1"),
    "endless": (trainer("max_epochs", -1), "trainer.max_epochs=-1: "),
    "fast_dev_run": (trainer("fast_dev_run", -1), "fast_dev_run=-1"),
    "barebones": (trainer("barebones", "true"), "trainer.barebones=true: "),
    "checkpoints": (trainer("enable_checkpointing", "false"), "enable_checkpointing=false: "),
    "accelerator": (trainer("accelerator", "tpu"), "trainer: Requirement 'torch_xla"),
    "devices": (trainer("devices", "foo"), "trainer: `devices`"),
    "strategy": (trainer("strategy", "foo"), "trainer: You selected an invalid strategy"),
    "precision": (trainer("precision", "16-true"), "trainer.precision='16-true': "),
    "engine": (trainer("precision", "transformer-engine"), "trainer: Requirement 'transformer_en"),
    "profiler": (trainer("profiler", "foo"), "trainer: When passing string value for the `prof"),
    "max_time": (trainer("max_time", "foo"), "trainer: `Timer(duration='foo')`"),
    "seed -1": (["--seed_everything", "-1"], "seed_everything=-1 must lie between 0 and"),
    "seed": (["--seed_everything", "4294967296"], "seed_everything=4294967296 must lie between"),
    "best": (["--ckpt_path", "best"], "ckpt_path='best': a run keeps one checkpoint"),
    "hpc": (["--ckpt_path", "hpc"], "ckpt_path='hpc': a run keeps one checkpoint"),
    "stopping": (callback("EarlyStopping", monitor="val/acc"), "EarlyStopping monitors 'val/acc'"),
    "mode": (callback("EarlyStopping", monitor="train/loss", mode="foo"), "`mode` can be min, max"),
    "monitor": (callback("ModelCheckpoint", monitor="val/acc"), "ModelCheckpoint monitors 'val/"),
    "top": (callback("ModelCheckpoint", save_top_k=3), "ModelCheckpoint(save_top_k=3"),
    "exception": (callback("OnExceptionCheckpoint", dirpath="x"), "OnExceptionCheckpoint keeps"),
    "backbone": (callback("BackboneFinetuning"), "BackboneFinetuning "),
    "accumulation": (
        callback("GradientAccumulationScheduler", scheduling="{0: 0}"),
        "Accumulation factor should be",
    ),
    "logger": (
        ["--trainer.logger", "lightning.pytorch.loggers.WandbLogger"],
        "lightning.pytorch.loggers.WandbLogger: Requirement 'wandb",
    ),
}
LEARNED = {
    "test 0": (trainer("limit_test_batches", 0), "trainer.limit_test_batches=0 leaves no image"),
    "test 0.1": (trainer("limit_test_batches", 0.1), "less than one batch of 'reds', which has 2"),
    "validation 0": (
        trainer("limit_val_batches", 0),
        "trainer.limit_val_batches=0 leaves no image",
    ),
    "validation 0.1": (trainer("limit_val_batches", 0.1), "limit_val_batches=0.1 is less than one"),
    "no validation": (callback("EarlyStopping", monitor="val/average"), "it logs train/loss, tra"),
    "EMA": (callback("EMAWeightAveraging"), "EMAWeightAveraging works on the weights"),
    "SWA": (
        callback("StochasticWeightAveraging", swa_lrs=0.1, device="null"),
        "StochasticWeightAveraging works",
    ),
    "pruning": (
        callback("ModelPruning", pruning_fn="l1_unstructured", amount=0.1),
        "ModelPruning works on the weights",
    ),
    "rate": (callback("LearningRateFinder"), "LearningRateFinder works on the weights"),
}
TRAINED = {
    "validation 0.1": (trainer("limit_val_batches", 0.1), "limit_val_batches=0.1 is less than one"),
    "not validated": (
        [*callback("EarlyStopping", monitor="val/average"), *trainer("limit_val_batches", 0)],
        "it logs train/loss, train/reds, train/shapes, train/average",
    ),
    "no end": ([*trainer("max_epochs", -1), *trainer("max_time", "01:00:00:00")], "decays until"),
}


def settings_of(kind, files, folder):
    """The config of a run of two steps per epoch, and of two batches of test images."""
    if kind == "FineTune":
        model = model_of(files, kind, output=str(folder / "out.safetensors"))
        model["init_args"].pop("zoo")
        model["init_args"] |= {"base": files.base, "heads": files.heads, "overwrite": True}
        return {"model": model, "data__fit_on": "train", "data__batch_size": 16}
    return {"model": model_of(files, kind), "data__batch_size": 4, "data__eval_batch_size": 10}


CASES = [
    *(("AdaMerging", *case) for case in (BOTH | LEARNED).values()),
    *(("FineTune", *case) for case in TRAINED.values()),
]
NAMES = [*(BOTH | LEARNED), *(f"FineTune {name}" for name in TRAINED)]


@pytest.fixture
def learns_nothing(monkeypatch):
    def learn(*_):
        pytest.fail("it learns")

    for kind in (CoefficientModule, FineTune):
        monkeypatch.setattr(kind, "training_step", learn)


@pytest.mark.usefixtures("learns_nothing")
@pytest.mark.parametrize(("kind", "options", "words"), CASES, ids=NAMES)
def test_one_line_and_the_folder_as_it_was(
    run, config, files, tmp_path, monkeypatch, kind, options, words
):
    path = config(
        **settings_of(kind, files, tmp_path),
        trainer__max_epochs=1,
        trainer__callbacks=[GRID][: kind == "AdaMerging"],
    )
    kept = {tmp_path / "run" / name: name.encode() for name in ("results.md", "metrics.csv")}
    for file, content in kept.items():
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    result = run("fit", "--config", path, *options)
    assert result.code == 2, result.err
    told = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert result.err.splitlines()[-1:] == told, result.err
    assert words in told[0]
    found = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert found == kept


class Mine(Callback):
    """A user's own, which might log anything."""


def test_what_shows_while_it_runs_is_one_line_too(run, config, files):
    early = {"class_path": CALLBACKS + "EarlyStopping", "init_args": {"monitor": "mine"}}
    mine = {"class_path": f"{__name__}.Mine"}
    settings = settings_of("AdaMerging", files, None)
    result = run("fit", "--config", config(**settings, trainer__callbacks=[early, mine]))
    assert result.code == 2
    assert "error: trainer: Early stopping conditioned on metric `mine`" in result.err


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_measuring_nothing(run, config, files, command):
    model = model_of(files, "Evaluate", heads=files.heads, weights=files.base)
    model["init_args"].pop("zoo")
    part = {"validate": "val"}.get(command, command)
    for limit in ("0", "0.1"):
        option = f"--trainer.limit_{part}_batches"
        result = run(command, "--config", config(model=model), option, limit)
        assert result.code == 2
        assert f"trainer.limit_{part}_batches={limit}" in result.err


def test_faults_of_the_program_keep_their_traceback():
    with pytest.raises(ValueError, match="ours"), refusals():
        raise ValueError("ours")
    with pytest.raises(InputError, match=r"^theirs and more$"), refusals():
        raise InputError("theirs and more")
    with pytest.raises(InputError, match=r"^trainer: theirs and more$"), refusals():
        raise MisconfigurationException("theirs\n  and  more")
    with pytest.raises(InputError, match=r"^trainer: .*max_epochs"), refusals():
        Trainer(max_epochs=-7)


@pytest.mark.parametrize("sampling", ["equal", "proportional"])
@pytest.mark.parametrize("size", [1, 3, 5, 7, 100])
def test_batches_are_counted_as_they_are_loaded(root, sampling, size):
    data = MergeDataModule(
        root=str(root), tasks=list(TASKS), batch_size=size, eval_batch_size=size, sampling=sampling
    )
    data.preprocess = MiniViT(image_size=8).preprocess
    data.load()
    assert count_batches(data, "val") == dict(
        zip(TASKS, map(len, data.val_dataloader()), strict=True)
    )
    assert count_batches(data, "test") == dict(
        zip(TASKS, map(len, data.test_dataloader()), strict=True)
    )
    for processes in (1, 2, 3, 9):
        images = {task: data._fit_inputs(task) for task in TASKS}
        loaders = fit_loaders(
            images, size, proportional=sampling == "proportional", seed=0, num_workers=0,
            ranks=Ranks(0, processes),
        )  # fmt: skip
        found = count_batches(data, "train", processes)
        assert found == {task: len(loader) for task, loader in loaders.iterables.items()}
