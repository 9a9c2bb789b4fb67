"""What a run has learned, used by the merge command and by a callback of another run."""

import pytest
import torch
from tiny_zoo import TASKS

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint


@pytest.fixture
def learned(run, config, tmp_path):
    """Fit a small run; return its folder."""
    result = run("fit", "--config", config(), "--model.name", "sml", "--model.learning_rate", 0.1)
    assert result.code == 0, result.err
    values = open_checkpoint(tmp_path / "run" / "coefficients.safetensors")["coefficients"]
    assert values.std() > 0.01
    return tmp_path / "run"


def test_the_runs_own_experts_merge_to_the_runs_own_network(learned, run, files, tmp_path):
    experts = [word for task in TASKS for word in (f"--experts.{task}", files.expert[task])]
    own = open_checkpoint(learned / "merged" / "sml.safetensors")
    for by in ("layer", "depth", "statistics"):
        output = tmp_path / f"{by}.safetensors"
        result = run(
            "merge", "--base", files.base, *experts, "--output", output,
            "--method", "LearnedCoefficients", "--method.by", by,
            "--method.file", learned / "coefficients.safetensors",
        )  # fmt: skip
        assert result.code == 0, result.err
        merged = open_checkpoint(output)
        assert set(merged) == set(own)
        for name, tensor in own.items():
            torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_callback_of_another_run_merges_by_it(learned, run, config, tmp_path):
    callback = {
        "class_path": "MergeCallback",
        "init_args": {
            "name": "transferred",
            "method": {
                "class_path": "LearnedCoefficients",
                "init_args": {
                    "file": str(learned / "coefficients.safetensors"),
                    "by": "statistics",
                },
            },
        },
    }
    other = tmp_path / "other"
    again = config(trainer__callbacks=[callback], trainer__default_root_dir=str(other))
    result = run("fit", "--config", again, "--model.name", "again")
    assert result.code == 0, result.err
    merged = open_checkpoint(other / "merged" / "transferred.safetensors")
    for name, tensor in open_checkpoint(learned / "merged" / "sml.safetensors").items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)
    assert "transferred" in (other / "results.json").read_text()
