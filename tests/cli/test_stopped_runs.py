"""The run folder's checkpoint: every way of stopping, other ends, and what is not gone on from."""

import csv
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from tiny_zoo import ENCODER, model_of

from lightning_merge.cli.main import main
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.modules import CoefficientModule, FineTune

ADA = {"data__batch_size": 4, "trainer__log_every_n_steps": 1}


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def expert_of(files, folder, **options):
    """The config of FineTune."""
    options = {
        "encoder": {"class_path": "lightning_merge.models.MiniViT", "init_args": ENCODER},
        "output": str(folder / "expert.safetensors"),
        "base": files.base,
        "heads": files.heads,
        "overwrite": True,
        **options,
    }
    return {"class_path": "lightning_merge.modules.FineTune", "init_args": options}


def learned(folder):
    return open_checkpoint(folder / "coefficients.safetensors")["coefficients"]


def stop_at(epoch, how):
    """Let training stop in the middle of an epoch; return what takes that back."""
    steps = {kind: kind.training_step for kind in (CoefficientModule, FineTune)}

    def stopping(step):
        def training_step(module, batch, batch_idx):
            if module.current_epoch == epoch and batch_idx:
                how()
            return step(module, batch, batch_idx)

        return training_step

    for kind, step in steps.items():
        kind.training_step = stopping(step)
    return lambda: [setattr(kind, "training_step", step) for kind, step in steps.items()]


@pytest.fixture(autouse=True)
def heeds_ctrl_c():
    """Heed Ctrl-C also where the tests run in the background, whose processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def in_a_process(number):
    """Run in a process of its own that sends itself a signal within epoch 2."""

    def stop(run, path):
        said = Path(path).with_suffix(".stderr")
        child = os.fork()  # the libraries are loaded once
        if child == 0:
            with said.open("w") as file:
                os.dup2(file.fileno(), 2)
                sys.stderr = file
                stop_at(2, lambda: os.kill(os.getpid(), number))
                code = main(["fit", "--config", str(path)])
            os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text()

    return stop


def press(run, path):
    """Press Ctrl-C in this process."""

    def interrupt():
        raise KeyboardInterrupt

    undo = stop_at(2, interrupt)
    try:
        done = run("fit", "--config", path)
    finally:
        undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return done.code, done.err


TERM, INT, KILL = map(in_a_process, (signal.SIGTERM, signal.SIGINT, signal.SIGKILL))
CODES = {TERM: (143, "terminated;"), INT: (130, "interrupted;"), press: (130, "interrupted;")}


@pytest.mark.parametrize(
    ("stop", "kind", "end"),
    [
        (press, "StatsMerging", {"max_epochs": 4}),
        (press, "AdaMerging", {"max_epochs": -1, "max_steps": 11}),
        (press, "AdaMerging", {"max_epochs": 4, "max_steps": 7, "accumulate_grad_batches": 2}),
        (press, "FineTune", {"max_epochs": 4, "max_steps": 11, "limit_train_batches": 3}),
        (KILL, "AdaMerging", {"max_epochs": -1, "max_steps": 11}),
        (INT, "StatsMerging", {"max_epochs": -1, "max_steps": 11}),
        (TERM, "FineTune", {"max_epochs": -1, "max_steps": 40}),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not(
    run, config, files, tmp_path, caplog, stop, kind, end
):
    """Stop it after a checkpoint, start it again, compare with an unbroken run."""
    folder, whole = tmp_path / "run", tmp_path / "whole"
    options = {f"trainer__{name}": value for name, value in end.items()} | ADA

    def path(place):
        if kind == "FineTune":
            place.mkdir(exist_ok=True)
            settings = {"model": expert_of(files, place), "data__fit_on": "train"}
        else:
            settings = {"model": model_of(files, kind, learning_rate=0.1)}
        return config(**options, **settings, trainer__default_root_dir=str(place))

    result = "expert.safetensors" if kind == "FineTune" else "coefficients.safetensors"
    assert run("fit", "--config", path(whole)).code == 0
    code, error = stop(run, path(folder))
    expected, words = CODES.get(stop, (-signal.SIGKILL, ""))
    assert code == expected, error
    assert words in error
    assert "Traceback" not in error
    assert ("the same command goes on" in error) == (stop is not KILL)
    assert not (folder / result).exists()
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 2
    caplog.clear()
    assert run("fit", "--config", path(folder)).code == 0
    assert "going on from" in caplog.text
    assert (folder / result).read_bytes() == (whole / result).read_bytes()
    epochs = {int(row["epoch"]) for row in rows(folder / "metrics.csv")}
    assert epochs >= {2, 3}
    if stop is not KILL:  # which may cost the rows that were not written yet
        assert epochs == {0, 1, 2, 3}


MORE = ["--overwrite", "true"]


@pytest.mark.parametrize(
    ("name", "first", "last", "message"),
    [
        ("StatsMerging", {"max_epochs": 2}, {"max_epochs": 4}, "going on from"),
        ("AdaMerging", {"max_steps": 4}, {"max_epochs": 3}, "going on from"),
        ("AdaMerging", {"max_epochs": 3}, {"max_epochs": 3, "max_steps": 7}, "longer than"),
        ("AdaMerging", {"max_epochs": 3}, {"max_epochs": 2}, "longer than trainer.max_epochs or"),
    ],
)
def test_another_end(run, config, files, tmp_path, caplog, name, first, last, message):
    """A run that has finished goes on to a later end as if it had had that end from the start."""
    ends = ({"max_epochs": -1, **end} for end in (first, last))
    first, last = ({f"trainer__{k}": v for k, v in end.items()} for end in ends)
    model = {"model": model_of(files, name, learning_rate=0.1), **ADA}
    whole = str(tmp_path / "whole")
    assert (
        run("fit", "--config", config(**model, **last, trainer__default_root_dir=whole)).code == 0
    )
    assert run("fit", "--config", config(**model, **first)).code == 0
    refused = run("fit", "--config", config(**model, **last))
    assert refused.code == 2  # there are results to lose
    assert "--overwrite" in refused.err
    caplog.clear()
    assert run("fit", "--config", config(**model, **last), *MORE).code == 0
    assert message in caplog.text
    assert torch.equal(learned(tmp_path / "run"), learned(tmp_path / "whole"))


def test_another_end_of_a_run_whose_learning_rate_follows_it(run, config, files, tmp_path, caplog):
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"

    def fit(epochs, *options):
        caplog.clear()
        path = config(
            model=expert_of(files, tmp_path), data__fit_on="train", trainer__max_epochs=epochs
        )
        assert run("fit", "--config", path, *options).code == 0
        return open_checkpoint(tmp_path / "expert.safetensors").metadata["hyperparameters"]

    fit(1)
    fit(2)
    assert "another end, which the learning rate follows: trainer.max_epochs (1 before, 2 now)" in (
        caplog.text
    )
    assert f"--ckpt_path {last}" in caplog.text
    assert '"epochs": 3' in fit(3, "--ckpt_path", str(last))
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        assert {row["epoch"] for row in csv.DictReader(file)} == {"0", "1", "2"}


def spoil(value):
    def work(last):
        checkpoint = torch.load(last, weights_only=True)
        next(iter(checkpoint["state_dict"].values())).view(-1)[0] = value
        torch.save(checkpoint, last)

    return work


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (spoil(torch.nan), "has diverged (learner."),
        (spoil(torch.inf), "has diverged (learner."),
        (lambda last: last.write_bytes(last.read_bytes()[:3000]), "cannot be read"),
        (lambda last: last.write_bytes(b""), "cannot be read"),
    ],
)
def test_a_checkpoint_that_is_not_gone_on_from(
    run, config, files, tmp_path, caplog, damage, message
):
    path = config(model=model_of(files, "AdaMerging"), trainer__max_epochs=1)
    assert run("fit", "--config", path).code == 0
    before = (tmp_path / "run" / "coefficients.safetensors").read_bytes()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    (tmp_path / "run" / "results.json").unlink()
    damage(last)
    refused = run("fit", "--config", path, "--ckpt_path", last)
    assert refused.code == 2
    assert "ckpt_path=" in refused.err
    caplog.clear()
    assert run("fit", "--config", path).code == 0
    assert message in caplog.text
    assert "starting anew" in caplog.text
    assert (tmp_path / "run" / "coefficients.safetensors").read_bytes() == before


def test_a_run_that_diverges_writes_nothing_and_starts_anew(run, config, files, tmp_path):
    settings = {"model": expert_of(files, tmp_path, learning_rate=1e30), "data__fit_on": "train"}
    for _ in range(2):
        result = run("fit", "--config", config(**settings))
        assert result.code == 2
        assert "diverged in epoch 0" in result.err
        assert "learning_rate below 1e+30" in result.err
        assert not (tmp_path / "expert.safetensors").exists()
    settings["model"]["init_args"]["learning_rate"] = 1e-3
    assert run("fit", "--config", config(**settings)).code == 0
    assert (tmp_path / "expert.safetensors").exists()


def test_another_storage_needs_no_other_training(run, config, files, tmp_path, caplog):
    for storage, message in (("float32", ""), ("bfloat16", "going on from")):
        settings = {"model": expert_of(files, tmp_path, storage=storage), "data__fit_on": "train"}
        caplog.clear()
        assert run("fit", "--config", config(**settings)).code == 0
        assert message in caplog.text


def test_what_slurm_had_lightning_keep_is_not_gone_on_from(
    run, config, files, tmp_path, monkeypatch
):
    """It is of the middle of a step, and maybe of another configuration."""
    path = config(model=model_of(files, "AdaMerging", learning_rate=0.1), trainer__max_epochs=2)
    assert run("fit", "--config", path).code == 0
    folder, before = tmp_path / "run", learned(tmp_path / "run")
    kept = folder / "hpc_ckpt_1.ckpt"
    (folder / "checkpoints" / "last.ckpt").rename(kept)
    (folder / "results.json").unlink()
    variables = {"NTASKS": "1", "JOB_NAME": "merge", "JOB_ID": "1", "PROCID": "0", "LOCALID": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    steps = []
    step = CoefficientModule.training_step
    monkeypatch.setattr(
        CoefficientModule, "training_step", lambda *args: steps.append(1) or step(*args)
    )
    assert run("fit", "--config", path).code == 0
    assert len(steps) == 2
    assert torch.equal(learned(folder), before)
    assert not kept.exists()


def test_a_checkpoint_is_whole_or_the_one_before(run, config, files, tmp_path, monkeypatch):
    """The process dies while the second one is written."""
    path = config(model=model_of(files, "AdaMerging", learning_rate=0.1), trainer__max_epochs=3)
    save, saved = torch.save, []

    def die(checkpoint, file, **options):
        saved.append(file)
        save(checkpoint, file, **options)
        if len(saved) == 2:
            Path(file).write_bytes(Path(file).read_bytes()[:100])
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", die)
        assert run("fit", "--config", path).code == 130
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 1
    (last.parent / ".last.0123abcd.tmp.ckpt").write_bytes(b"left by a process that was killed")
    assert run("fit", "--config", path).code == 0
    assert [file.name for file in last.parent.iterdir()] == ["last.ckpt"]
