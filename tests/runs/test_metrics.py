"""metrics.csv over the sessions of a run."""

import csv

from lightning_merge.runs.metrics import MetricsFile


def session(folder, *rows):
    """Log rows of metrics as one session of a run."""
    log = MetricsFile(folder)
    for step, metrics in rows:
        log.log_metrics(metrics, step)
        log.save()
    log.finalize("success")


def read(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def test_a_later_session_adds_rows_and_columns(tmp_path):
    session(tmp_path, (0, {"loss": 0.5}), (1, {"loss": 0.25, "lr": 0.1}))
    session(tmp_path, (2, {"accuracy": 1.0}))
    assert read(tmp_path) == [
        {"loss": "0.5", "step": "0"},
        {"loss": "0.25", "lr": "0.1", "step": "1"},
        {"accuracy": "1.0", "step": "2"},
    ]
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert header == "accuracy,loss,lr,step"


def test_nothing_is_written_where_nothing_is_logged(tmp_path):
    session(tmp_path)
    assert not (tmp_path / "metrics.csv").exists()
