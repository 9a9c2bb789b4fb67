"""The help that is read from the source says what jsonargparse would."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from lightning_merge.cli.command_help import options_of, parser_of
from lightning_merge.cli.definitions import find, kinds_of
from lightning_merge.cli.usage import COMMANDS, RUNS
from lightning_merge.methods.base import Method, Transform, registered
from lightning_merge.models.encoder import Encoder

ROOT = Path(__file__).resolve().parents[2]


def peer(command):
    """The options of jsonargparse: name -> whether it is required, its default, its help."""
    module, name = RUNS[command]
    runs, parser = getattr(importlib.import_module(module), name), ArgumentParser()
    add = parser.add_class_arguments if isinstance(runs, type) else parser.add_function_arguments
    add(runs, as_group=False)
    return [action for action in parser._actions if type(action).__name__ != "_ActionConfigLoad"]


@pytest.mark.parametrize("command", RUNS)
def test_options_are_those_of_jsonargparse(command):
    expected = {
        action.dest: (action.required, action.default, " ".join(action.help.split()))
        for action in peer(command)
        if type(action).__name__ == "ActionTypeHint"
    }
    found = {
        option.name: (
            option.default is None,
            option.default and ast.literal_eval(option.default),
            option.about,
        )
        for option in options_of(find(*RUNS[command]))
    }
    assert found == expected


@pytest.mark.parametrize("command", RUNS)
def test_words_that_help_names_are_those_that_jsonargparse_takes(command):
    expected = {word for action in peer(command) for word in action.option_strings}
    found = parser_of(command, "p")._option_string_actions
    assert set(found) - {"--config"} == {*expected, "-h", "--help", "--print_config"}


SAID = {
    "merge": (
        "--experts EXPERTS --base BASE --method CLASS --output OUTPUT [options]",
        "(type: int, default: 1)",
        "TaskArithmetic, Ties. (required)",
        "--ignore IGNORE, --ignore+ IGNORE",
    ),
    "tune": (
        "TSVM, TaskArithmetic, Ties, WEMoE. (required)",
        "--zoo.text.name NAME",
        "--batch_norm {auto,recalibrate,average}",
        "(default: auto)",
    ),
    "list": ("[--config FILE] [options]", "--what {all,methods,transforms,tasks,encoders}"),
}


def squeezed(text):
    """The text without spaces: lines break at hyphens, too."""
    return "".join(text.split())


@pytest.mark.parametrize("command", RUNS)
@pytest.mark.parametrize("width", [60, 200])
def test_help_names_the_program_the_defaults_and_the_choices(command, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = parser_of(command, "100 % program").format_help()
    assert text.startswith(f"usage: 100 % program {command} [--config FILE]")
    assert "None" not in text
    assert "%%" not in text
    assert max(map(len, text.splitlines())) <= width
    letters = squeezed(text)
    for option in options_of(find(*RUNS[command])):
        assert all(choice in letters for choice in option.choices)
        assert squeezed(option.about) in letters
    for words in SAID.get(command, ()):
        assert squeezed(words) in letters
    assert ("Surgery" in letters) == (command == "tune")  # merge makes no networks


def test_classes_are_found_without_importing_them():
    def ours(kinds):  # and not those that other tests define
        return {name for name, c in kinds.items() if c.__module__.startswith("lightning_merge.")}

    for kind in (Method, Transform):
        assert set(kinds_of("lightning_merge.methods", kind.__name__)) == ours(registered(kind))
    assert set(kinds_of("lightning_merge.models", "Encoder")) == ours(registered(Encoder))


def test_every_command_of_ours_answers_at_once():
    assert set(COMMANDS) - set(RUNS) == {"fit", "validate", "test", "predict"}


@pytest.mark.parametrize("words", [["merge", "--help"], ["tune", "-h"], ["list"]], ids=" ".join)
def test_these_do_not_wait_for_torch(words):
    command = [sys.executable, "-X", "importtime", "-m", "lightning_merge", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "lightning_merge.cli.definitions" in imported
    assert not imported & {"torch", "lightning", "timm", "transformers", "numpy"}
    assert ("jsonargparse" in imported) == (words == ["list"])
    assert "Ties" in done.stdout


@pytest.mark.parametrize("name", ["lightning-merge", "__main__.py"])
@pytest.mark.parametrize("command", ["merge", "tune", "fit"])
def test_help_of_jsonargparse_names_the_program_too(command, name, monkeypatch, run):
    called = "lightning-merge" if name == "lightning-merge" else "python -m lightning_merge"
    monkeypatch.setattr(sys, "argv", [f"/somewhere/{name}", command])
    shown = run(command, "--help")
    assert not shown.code
    assert re.match(rf"usage: {called} (\[options\] )?{command} ", shown.out)


def test_help_of_a_method_tells_of_its_own_options_and_of_inherited_ones(run):
    shown = run("merge", "--method.help", "TSVM")
    assert not shown.code
    words = " ".join(shown.out.split())
    assert "Factor of the update." in words
    assert "Applied to the task vectors first, in order." in words
