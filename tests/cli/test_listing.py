"""The table of methods: as their facts say, in every order, and as the documentation has it."""

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_merge.cli.definitions import kinds_of
from lightning_merge.cli.listing import COLUMNS, needs_of_methods
from lightning_merge.data.tasks import expand_tasks
from lightning_merge.evaluation.tables import markdown_table
from lightning_merge.methods.base import Method, registered

DOCUMENT = Path(__file__).parents[2] / "docs" / "methods.md"


def names(run, *options):
    """The methods in the order of the table."""
    rows = run("list", "--what", "methods", *options).out.split("  +:")[0].splitlines()[2:]
    return [row.split()[0] for row in rows]


def test_all_methods_and_the_modules_that_learn_are_named(run):
    package = {n for n, k in registered(Method).items() if k.__module__.startswith("lightning")}
    assert package | {"AdaMerging", "StatsMerging"} <= set(names(run))
    assert names(run) == sorted(names(run))


def test_sorted_by_need_the_least_comes_first(run):
    order, rows = names(run, "--sort", "needs"), needs_of_methods()
    asked = [rows[name][:3] for name in order]
    amounts = [
        (network != "-") + {"-": 0, "any": 1, "by task": 2}[images] + (heads != "-")
        for network, images, heads in asked
    ]
    assert amounts == sorted(amounts)
    assert order.index("Average") < order.index("EMR") < order.index("MTies")
    assert order.index("MTies") < order.index("RegMean") < order.index("Fisher")


def test_sorted_by_readings(run):
    order, rows = names(run, "--sort", "readings"), needs_of_methods()
    readings = [int(rows[name][4]) for name in order if not rows[name][4].startswith("+")]
    assert readings == sorted(readings)
    assert [name for name in order if rows[name][4].startswith("+")] == order[len(readings) :]


@pytest.mark.parametrize("name", ["Average", "EMR", "Fisher", "MTies", "Surgery", "AdaMerging"])
def test_a_row_is_what_was_published(name):
    """Network, images, heads, told the task, readings, and what comes out."""
    assert (
        needs_of_methods()[name]
        == {
            "Average": ("-", "-", "-", "-", "1", "weights"),
            "EMR": ("yes", "-", "-", "yes", "1", "network"),
            "Fisher": ("yes", "by task", "yes", "-", "3", "weights"),
            "MTies": ("yes", "any", "-", "-", "2", "weights"),
            "Surgery": ("yes", "by task", "-", "yes", "+1", "network"),
            "AdaMerging": ("yes", "by task", "yes", "-", "1", "weights"),
        }[name]
    )


def test_the_source_states_what_the_classes_have():
    kinds = {n: k for n, k in registered(Method).items() if k.__module__.startswith("lightning")}
    listed = kinds_of("lightning_merge.methods", "Method")
    assert {n: k.facts for n, k in kinds.items()} == {n: k.facts for n, k in listed.items()}


def test_only_methods_have_needs_to_sort_by(run):
    done = run("list", "--what", "tasks", "--sort", "needs")
    assert done.code == 2
    assert "sort='needs': tasks are listed by name" in done.err


def test_the_documentation_has_the_table():
    rows = needs_of_methods("needs")
    cells = [(name, *row) for name, row in rows.items()]
    table = markdown_table(("method", *COLUMNS), cells, ["---"] * (len(COLUMNS) + 1))
    assert table in DOCUMENT.read_text(encoding="utf-8")


def test_a_reader_that_stops_ends_it_quietly():
    command = [sys.executable, "-m", "lightning_merge", "list", "--what", "methods"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
        listing.stdout.close()  # before anything is written
        assert listing.stderr.read() == b""
        assert listing.wait() == 141


def test_groups_of_tasks_are_listed_with_their_tasks(run):
    shown = run("list", "--what", "tasks").out
    words = shown[shown.index("vision8 ") :].replace(",", " ").split()
    assert words[:5] == ["vision8", "group", "of", "8", "tasks"]
    assert tuple(words[5:13]) == expand_tasks("vision8")
