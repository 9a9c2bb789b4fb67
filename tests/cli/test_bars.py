"""The bars of a run: which loops are shown, on which terminals, and what they leave there."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import time
from contextlib import contextmanager

import pytest
from lightning.pytorch import Trainer

from lightning_merge.cli import shown
from lightning_merge.cli.bars import Bars
from lightning_merge.cli.display import Silent
from lightning_merge.cli.run_log import RunLog
from lightning_merge.cli.trainer import EpochBar


@pytest.fixture
def told(monkeypatch):
    """Every loop that a command shows: name, steps in all, steps done."""
    loops = []

    class Told(Silent):
        @contextmanager
        def loop(self, total, what, unit="", done=0):
            steps = [done]
            yield lambda number, items=0: steps.append(number)
            loops.append((what, total, sum(steps)))

    monkeypatch.setattr(shown, "_display", lambda switch, log: Told(log))
    return loops


def test_every_long_loop_of_a_run_is_shown(run, config, own_files, own_root, told):
    os.remove(own_files.heads)
    ties = {"class_path": "Ties"}
    callbacks = [
        {"class_path": "lightning_merge.callbacks.MergeCallback", "init_args": {"method": ties}}
    ]
    changes = {"trainer__enable_progress_bar": True, "trainer__callbacks": callbacks}
    assert run("fit", "--config", config(own_files, own_root, **changes)).code == 0
    names = {what for what, _, _ in told}
    assert {
        "features of reds for its head",
        "features of shapes for its head",
        "statistics of weights",
        "merging tensors",
        "measuring base",
        "measuring individual",
        "measuring ties",
        "measuring sml",
        "epoch",
        "network",
    } <= names
    assert [loop for loop in told if loop[1] != loop[2]] == []


def test_without_bars_nothing_is_measured_behind_one(run, config, told):
    assert run("fit", "--config", config()).code == 0
    assert not any(what.startswith("measuring") for what, _, _ in told)


@pytest.mark.parametrize(("seconds", "is_shown"), [(0.0, False), (1.3, True)])
def test_a_terminal_sees_a_bar_once_it_is_worth_it_and_none_is_left(monkeypatch, seconds, is_shown):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Bars(RunLog()).loop(2, "merging tensors") as advance:
            time.sleep(seconds)
            advance(1)
        monkeypatch.undo()
        print("end", file=terminal, flush=True)
    text = os.read(ours, 10_000).decode()
    os.close(ours)
    assert ("merging tensors:  50%" in text) is is_shown
    assert re.search(r"(^|\r *\r)end\r\n$", text), text


@pytest.mark.parametrize(("end", "words"), [(-1, "Epoch 3"), (7, "Epoch 3/6")])
def test_no_number_of_epochs_where_there_is_none(end, words):
    shown_by = EpochBar()
    trainer = Trainer(
        max_epochs=end, max_steps=9, accelerator="cpu", logger=False,
        enable_checkpointing=False, callbacks=[shown_by],
    )  # fmt: skip
    shown_by.setup(trainer, trainer.lightning_module, "fit")
    assert shown_by._get_train_description(3).strip() == words
