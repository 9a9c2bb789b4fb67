"""What a person sees of a run: stages in order, on a terminal and without one, and run.log."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from pathlib import Path

import pytest
import yaml
from processes import command, on, together  # noqa: F401
from tiny_zoo import TASKS, TRAINER

from lightning_merge.cli.checklist import Checklist
from lightning_merge.cli.display import Lines, done_share, time_left
from lightning_merge.cli.main import main
from lightning_merge.cli.run_log import RunLog
from lightning_merge.cli.shown import taken
from lightning_merge.core.errors import InputError

STAGES = [
    "base",
    "heads",
    "expert of reds",
    "expert of shapes",
    "learning",
    "merging average",
    "merging ties",
    "choosing",
    "measuring",
]


class Screen:
    """A terminal in few words: the signs that rich and Python write, and nothing else."""

    def __init__(self, columns):
        self.columns, self.lines, self.row, self.column = columns, [""], 0, 0
        self.cursor = True

    def write(self, text):
        for sign in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[^\x1b]", text):
            if sign[0] == "\x1b":
                self.control(sign[2:-1], sign[-1])
            elif sign == "\r":
                self.column = 0
            elif sign == "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            else:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + sign + line[self.column + 1 :]
                self.column += 1

    def control(self, number, kind):
        if kind == "A":
            self.row -= int(number)
        elif kind == "K":
            assert number == "2"
            self.lines[self.row] = ""
        elif number == "?25":
            self.cursor = kind == "h"
        else:
            assert kind == "m", (number, kind)


@pytest.fixture
def terminal(monkeypatch):
    """Run a command on a terminal of 80 columns: its exit code, what stays, all that it wrote."""

    def call(*arguments):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        read = []

        def follow():
            while chunk := os.read(ours, 65536):
                read.append(chunk)
                if chunk.endswith(b"\0"):
                    return

        reader = threading.Thread(target=follow)
        reader.start()
        with os.fdopen(theirs, "w", encoding="utf-8") as file, monkeypatch.context() as patch:
            for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdout", file)
            patch.setattr(sys, "stderr", file)
            code = main([*map(str, arguments)])
            file.write("\0")
            file.flush()
            reader.join()
        os.close(ours)
        text = b"".join(read).decode().rstrip("\0")
        screen = Screen(80)
        screen.write(text)
        return code, screen, text

    return call


@pytest.fixture
def chain(tmp_path, config, own_files, own_root):
    """The config of a run that makes its base, heads and experts, and merges in two ways."""

    def recipe(name, tasks):
        options = {
            "encoder": yaml.safe_load(Path(config()).read_text())["model"]["init_args"]["encoder"],
            "output": "set by the stage",
        }
        content = {
            "model": {"class_path": "lightning_merge.modules.FineTune", "init_args": options},
            "data": {"root": str(own_root), "fit_on": "train", "batch_size": 20, **tasks},
            "trainer": {**TRAINER, "enable_progress_bar": True, "max_epochs": 1},
        }
        (tmp_path / name).write_text(yaml.safe_dump(content))
        return str(tmp_path / name)

    base = recipe("base.yaml", {"tasks": [*TASKS]})
    expert = recipe("expert.yaml", {})
    for file in (own_files.base, own_files.heads, *own_files.expert.values()):
        os.remove(file)
    merges = [
        {"name": "average", "method": {"class_path": "Average"}},
        {"name": "ties", "method": {"class_path": "Ties"}, "grid": {"scale": [0.5, 1.0]}},
    ]
    kind = "lightning_merge.callbacks.MergeCallback"
    changes = {
        "model__init_args__zoo__base_recipe": base,
        "model__init_args__zoo__expert_recipe": expert,
        "trainer__enable_progress_bar": True,
        "trainer__max_epochs": 2,
        "trainer__callbacks": [{"class_path": kind, "init_args": options} for options in merges],
    }
    return lambda **more: config(own_files, own_root, **{**changes, **more})


def log_of(tmp_path):
    return (tmp_path / "run" / "run.log").read_text()


def test_without_a_terminal_each_stage_is_one_line_in_order(run, chain, tmp_path):
    path = chain()
    found = run("fit", "--config", path)
    assert found.code == 0, found.err
    lines = found.err.splitlines()
    assert [line.split(":")[0] for line in lines] == STAGES
    assert "ties: 2 grid points" in found.err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", found.err + found.out)
    assert "GPU" not in found.err + found.out
    for words in ("GPU available", "Seed set to 3", "$ python -m lightning_merge fit", "reached"):
        assert words in log_of(tmp_path)
    for task in TASKS:
        assert log_of(tmp_path).count(f"expert of {task}: making") == 1
    before = log_of(tmp_path)
    again = run("fit", "--config", path)
    assert (again.code, again.err) == (0, "")
    assert log_of(tmp_path) == before


def test_what_is_there_already_is_skipped(run, chain):
    assert run("fit", "--config", chain()).code == 0
    other = run("fit", "--config", chain(trainer__max_epochs=1), "--overwrite", "true")
    assert other.code == 0, other.err
    lines = other.err.splitlines()
    assert lines[:4] == [f"{what}: there already" for what in STAGES[:4]]
    assert lines[4].endswith("say: starting anew")
    assert [line.split(":")[0] for line in lines[:4] + lines[5:]] == STAGES


def test_quiet_and_verbose(run, chain, config, tmp_path):
    path = chain()
    quiet = run("fit", "--quiet", "--config", path)
    assert (quiet.code, quiet.err) == (0, "")
    assert "run folder:" in quiet.out
    assert "GPU available" in log_of(tmp_path)
    record = (tmp_path / "run" / "results.json").read_text()
    assert "--quiet" not in record
    verbose = run(
        "fit", "--config", path, "--overwrite", "true", "--seed_everything", 4, "--verbose"
    )
    assert verbose.code == 0, verbose.err
    for words in ("base: there already", "on the test examples", "chosen on"):
        assert words in verbose.err
    for words in ("GPU available", "Seed set to 4"):
        assert words in log_of(tmp_path)


def test_a_terminal_shows_a_checklist_and_is_left_clean(terminal, chain):
    code, screen, text = terminal("fit", "--config", chain())
    assert code == 0
    assert screen.cursor
    lines = [line.rstrip() for line in screen.lines]
    table = next(i for i, line in enumerate(lines) if "candidate" in line)
    assert max(map(len, lines[: table + 8])) <= 80
    assert [line.split("  ")[0] for line in lines[: len(STAGES)]] == [f"✓ {s}" for s in STAGES]
    assert "▶" not in "".join(lines)
    assert "reds" in lines[len(STAGES) + 1]
    shown = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text)
    assert "▶ learning" in shown
    assert max(len(line) for line in re.split("[\r\n]+", shown) if "▶" in line) <= 80
    assert re.search(r"  measuring\r?\n", shown)  # among the stages to come
    assert "GPU" not in text


def test_a_stopped_run_leaves_the_terminal_clean(terminal, chain, monkeypatch):
    from lightning_merge.modules import StatsMerging

    def interrupted(*about):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StatsMerging, "on_train_epoch_end", interrupted)
        code, screen, _ = terminal("fit", "--config", chain())
    assert code == 130
    assert screen.cursor
    lines = [line.rstrip() for line in screen.lines if line.strip()]
    assert lines[4].startswith("✗ learning")
    assert lines[5].startswith("interrupted; the same command goes on")
    code, screen, _ = terminal("fit", "--config", chain())
    assert code == 0
    assert [line.split("  ")[0] for line in screen.lines[:5]] == [
        *(f"· {stage}" for stage in STAGES[:4]),
        "✓ learning",
    ]


def test_a_refused_run_leaves_no_log(run, config, tmp_path):
    refused = run("fit", "--config", config(trainer__max_epochs=-2))
    assert refused.code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [2, 3])
def test_the_first_of_several_processes_tells(command, config, capfd, size):  # noqa: F811
    path = config(trainer__enable_progress_bar=True, trainer__max_epochs=1)
    assert command(size, "fit", "--config", path, *on(size)) == [0] * size
    shown = [line.split(":")[0] for line in capfd.readouterr().err.splitlines()]
    assert [line for line in shown if line in STAGES] == ["learning", "measuring"]


def test_each_warning_is_shown_once_and_where_it_comes_from_is_logged(run, monkeypatch, tmp_path):
    import warnings

    from lightning_merge.cli import main as program
    from lightning_merge.core.progress import display

    def work(arguments):
        display().log_into(tmp_path)
        display().keep_log()
        warnings.simplefilter("always")
        for message in ("odd\n  input", "other", "odd\n  input"):
            warnings.warn(message, UserWarning, stacklevel=1)

    monkeypatch.setattr(program, "_run", work)
    with warnings.catch_warnings():
        assert run("fit").err == "warning: odd input\nwarning: other\n"
        assert run("fit", "--quiet").err == "warning: odd input\nwarning: other\n"
    assert f"{Path(__file__).name}:" in (tmp_path / "run.log").read_text()


@pytest.mark.parametrize(
    ("words", "left", "on"),
    [
        ("fit --quiet --config a", "fit --config a", "--quiet"),
        ("fit --quiet true --config a", "fit --config a", "--quiet"),
        ("fit --verbose false --config a", "fit --config a", ""),
        ("test --verbose --config a", "test --config a", "--verbose"),
        ("test --verbose false --quiet", "test --verbose false", "--quiet"),
        ("list --quiet", "list --quiet", ""),
    ],
)
def test_the_switches_are_taken_out(words, left, on):
    assert taken(words.split()) == (left.split(), on)


def test_both_switches_are_refused(run):
    assert "exclude each other" in run("fit", "--quiet", "--verbose").err
    with pytest.raises(InputError):
        taken(["merge", "--verbose", "--quiet"])


def at(seconds, monkeypatch):
    from lightning_merge.cli import display

    monkeypatch.setattr(display.time, "perf_counter", lambda: seconds)


def test_the_time_left_is_that_of_all_stages_or_says_that_it_is_more(monkeypatch):
    shown = Lines(RunLog())
    shown.write = lambda message: None
    at(0.0, monkeypatch)
    shown.plan(["expert of a", "expert of b", "expert of c", "measuring"])
    with shown.stage("expert of a"):
        at(60.0, monkeypatch)
        assert time_left(shown) == ""
    with shown.stage("expert of b"), shown.loop(4, "epoch") as epoch, shown.loop(10, "") as step:
        at(70.0, monkeypatch)
        step(5)
        assert done_share(shown.loops) == pytest.approx(0.125)
        assert time_left(shown) == "more than 2 min 10 s left"  # 70 here, 60 of c, and measuring
        del shown.to_come[-1]
        assert time_left(shown) == "2 min 10 s left"
        epoch(1)
        at(80.0, monkeypatch)
        assert done_share(shown.loops) == pytest.approx(0.375)


def test_the_time_left_of_a_resumed_loop_counts_what_was_done_now(monkeypatch):
    shown = Lines(RunLog())
    shown.write = lambda message: None
    at(0.0, monkeypatch)
    with shown.stage("learning"), shown.loop(10, "epoch", done=8) as epoch, shown.loop(2, ""):
        at(30.0, monkeypatch)
        epoch(1)
        assert time_left(shown) == "30 s left"


def test_an_old_terminal_gets_signs_it_can_show(monkeypatch):
    class Old:
        encoding = "ascii"

        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Old())
    assert Checklist(RunLog())._marks["done"] == "+"
