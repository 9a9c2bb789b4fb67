"""The report command against the aggregate that it writes."""

import json

import pytest
import torch
import yaml

from lightning_merge.evaluation import CandidateResult, Results, aggregate
from lightning_merge.evaluation.correctness import Correctness
from lightning_merge.evaluation.evidence import with_intervals
from lightning_merge.evaluation.tables import markdown


def write_runs(folder, answers=False):
    for seed, (low, high) in enumerate([(0.25, 0.5), (0.5, 0.625)]):
        rows = [CandidateResult(n, {"a": v}, {"a": 8}, 1.0) for n, v in [("x", low), ("y", high)]]
        results = Results(("a",), {row.name: row for row in rows}, seed, {"torch": "2.6.0"})
        if answers:
            right = {row.name: {"a": torch.arange(8)[None] < 8 * row.average} for row in rows}
            Correctness({"a": "d"}, right).write(folder / f"seed{seed}")
        yield results.to_json(folder / f"seed{seed}" / "results.json")


def test_report_is_the_table_of_the_runs(run, tmp_path):
    files = [*write_runs(tmp_path)]
    given = [str(files[0].parent), str(files[1])]  # a folder, a file
    output = tmp_path / "table.md"
    command = ("report", "--runs", str(given), "--output", output)
    assert run(*command).code == 0
    runs = [Results.from_json(file) for file in files]
    assert output.read_text() == markdown(aggregate(runs, None, [None, None]))
    assert "- No intervals: the run of seed 0 has no correct.safetensors" in output.read_text()

    again = run(*command, "--against", "x")
    assert again.code != 0
    assert "exists: give another path or --overwrite true" in again.err
    assert run(*command, "--against", "x", "--overwrite", "true").code == 0
    assert "+18.8 ± 8.8" in output.read_text()  # 25 and 12.5 points


def test_report_with_answers_has_intervals(run, tmp_path):
    files = [*write_runs(tmp_path, answers=True)]
    runs = [Results.from_json(file) for file in files]
    right = [Correctness.read(file.parent) for file in files]
    for count in (1, 2):
        output = tmp_path / f"table{count}.md"
        given = str([str(file) for file in files[:count]])
        done = run("report", "--runs", given, "--output", output, "--against", "x",
                   "--intervals", "all")  # fmt: skip
        assert done.code == 0
        total = aggregate(runs[:count], "x", right[:count])
        assert output.read_text() == markdown(total, intervals="all")
        (line,) = (line for line in output.read_text().splitlines() if line.startswith("| y |"))
        assert line.count("[") == 3  # task, average, difference
    assert f"{count} runs" in done.out


def test_intervals_that_are_not_shown_are_not_explained(run, tmp_path):
    given = str([str(file) for file in write_runs(tmp_path, answers=True)])
    output = tmp_path / "table.md"
    words = ("--runs", given, "--output", output, "--against", "x", "--intervals", "none")
    assert run("report", *words).code == 0
    text = output.read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("| y |"))
    assert "+18.8" in line
    assert "[" not in line
    assert "In brackets" not in text
    assert "two-sided" in text


def test_report_wants_a_candidate_to_compare_with(run, tmp_path):
    files = [str(file) for file in write_runs(tmp_path)]
    output = tmp_path / "table.md"
    refused = run("report", "--runs", str(files), "--output", output, "--against", "z")
    assert refused.code != 0
    assert "against='z' is not a candidate: give one of ['x', 'y']" in refused.err
    assert not output.exists()


def test_a_run_without_results_is_named(run, tmp_path):
    refused = run("report", "--runs", str([str(tmp_path)]), "--output", tmp_path / "table.md")
    assert refused.code == 2
    assert "has no results" in refused.err
    assert str(tmp_path / "results.json") in refused.err


def test_results_alone_keep_their_intervals(run, tmp_path):
    """A copy of one run's results.json, without its correct.safetensors."""
    right = {name: {"a": torch.arange(80)[None] < n} for name, n in (("x", 40), ("y", 70))}
    rows = [CandidateResult(n, {"a": float(b["a"].float().mean())}, {"a": 80}, 1.0)
            for n, b in right.items()]  # fmt: skip
    found = Results(("a",), {row.name: row for row in rows}, 0, {"torch": "2.6.0"})
    found = with_intervals(found, Correctness({"a": "d"}, right))
    file, output = found.to_json(tmp_path / "alone.json"), tmp_path / "table.md"
    assert run("report", "--runs", str([str(file)]), "--output", output).code == 0
    assert output.read_text() == markdown(found)
    assert "In brackets: 95 % interval" in output.read_text()
    words = ("--runs", str([str(file)]), "--output", tmp_path / "against.md", "--against", "x")
    assert run("report", *words).code == 0
    assert "has no correct.safetensors" in (tmp_path / "against.md").read_text()


def test_a_suffix_makes_a_page(run, tmp_path):
    files = [*write_runs(tmp_path, answers=True)]
    given, output = str([str(file.parent) for file in files]), tmp_path / "report.html"
    assert run("report", "--runs", given, "--output", output, "--against", "x").code == 0
    text = output.read_text()
    assert text.startswith("<!doctype html>")
    assert '"against":"x"' in text

    refused = run("report", "--runs", given, "--output", output)
    assert refused.code == 2
    assert "exists: give another path" in refused.err
    refused = run("report", "--runs", given, "--output", tmp_path / "b.html", "--columns",
                  "averages")  # fmt: skip
    assert refused.code == 2
    assert "is a page, which shows all intervals and columns" in refused.err


@pytest.mark.parametrize("suffix", ["md", "html"])
def test_what_leaks_is_refused_unless_it_is_allowed(run, tmp_path, suffix):
    file, _ = write_runs(tmp_path, answers=True)
    record = {"train": {"digest": "d"}, "test": {"digest": "d"}}
    (file.parent / "splits.json").write_text(json.dumps({"tasks": {"a": record}}))
    output = tmp_path / f"table.{suffix}"
    command = ("report", "--runs", str([str(file.parent)]), "--output", output)
    refused = run(*command)
    assert refused.code == 2
    assert "were trained on the test examples of a, as a (train)" in refused.err
    assert "rows x, y" in refused.err
    assert not output.exists()
    assert run(*command, "--allow-leak", "true").code == 0
    assert "were trained on the test examples of a" in output.read_text()


@pytest.mark.parametrize("suffix", ["md", "html"])
@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("results.json", "{", "cannot read results from"),
        ("results.json", '{"candidates": 3}', "cannot read results from"),
        ("splits.json", "[", "splits.json is not JSON"),
        ("splits.json", '{"tasks": {"a": {"test": 3, "train": 3}}}', "is not the record of a"),
        ("run.json", "[1]", "run.json is not a record"),
    ],
)
def test_a_broken_run_is_one_line(run, tmp_path, suffix, file, content, words):
    first, _ = write_runs(tmp_path, answers=True)
    (first.parent / file).write_text(content)
    output = tmp_path / f"table.{suffix}"
    refused = run("report", "--runs", str([str(first.parent)]), "--output", output)
    assert refused.code == 2
    assert words in refused.err
    assert refused.err.count("\n") == 1
    assert not [*tmp_path.glob("*table*")]


def test_an_output_that_cannot_be_written_is_one_line(run, tmp_path):
    first, _ = write_runs(tmp_path)
    (tmp_path / "file").write_text("")
    refused = run("report", "--runs", str([str(first.parent)]), "--output",
                  tmp_path / "file" / "report.html")  # fmt: skip
    assert refused.code == 2
    assert refused.err.count("\n") == 1


def test_runs_of_other_tasks_or_images_are_named(run, tmp_path):
    first, second = write_runs(tmp_path, answers=True)
    given, output = str([str(first.parent), str(second.parent)]), tmp_path / "report.html"
    right = Correctness.read(second.parent).right
    Correctness({"a": "e"}, right).write(second.parent)
    refused = run("report", "--runs", given, "--output", output)
    assert refused.code == 2
    assert "seed1 was measured on other test examples of a than" in refused.err
    row = CandidateResult("x", {"b": 0.5}, {"b": 8}, 1.0)
    Results(("b",), {"x": row}, 1, {}).to_json(second)
    (second.parent / "correct.safetensors").unlink()
    refused = run("report", "--runs", given, "--output", output)
    assert refused.code == 2
    assert "differ in tasks ['a', 'b']" in refused.err
    assert not output.exists()


def test_fit_writes_its_page_unless_told_not_to(run, config, tmp_path):
    page = tmp_path / "run" / "report.html"
    path = config(trainer__max_epochs=1)
    done = run("fit", "--config", path, "--report", "false")
    assert done.code == 0, done.err
    assert not page.exists()
    done = run("fit", "--config", path)  # the run is there; what is missing is its page
    assert done.code == 0, done.err
    assert f"report: {page}" in done.out
    text = page.read_text()
    average = Results.from_json(page.parent / "results.json").candidates["sml"].average
    assert f">{100 * average:.1f} %</dd>" in text
    assert "unlabelled</span>" in text  # what StatsMerging is shown
    assert "configuration" in text.lower()
    assert yaml.safe_load((page.parent / "config.yaml").read_text()).keys().isdisjoint(["report"])
