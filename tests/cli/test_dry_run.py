"""What a dry run says of a merge is what the merge then does, and it writes nothing."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

SHAPE = (64, 8)


@pytest.fixture
def files(tmp_path):
    """A base with every kind of tensor, and two experts, one with a head of its own."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    base = {
        "body.weight": random(*SHAPE),
        "body.bias": random(64),
        "tied.weight": random(5),
        "bn.running_mean": torch.zeros(8),
        "steps": torch.tensor([3]),
        "frozen": random(10),
        "head.weight": random(4, 8),
    }
    base["twin.weight"] = base["tied.weight"].clone()
    save_file(base, tmp_path / "base.safetensors")
    for task in ("a", "b"):
        changed = {"body.weight", "body.bias", "bn.running_mean", "tied.weight"}
        expert = {n: t + random(*t.shape) if n in changed else t for n, t in base.items()}
        expert["twin.weight"] = expert["tied.weight"].clone()
        expert["head.weight"] = random(9, 8)
        save_file(expert, tmp_path / f"{task}.safetensors")
    words = [w for t in "ab" for w in (f"--experts.{t}", tmp_path / f"{t}.safetensors")]
    return ["--base", tmp_path / "base.safetensors", *words, "--ignore", "head.*"]


def test_a_dry_run_lists_what_the_merge_does(run, files, tmp_path):
    output = tmp_path / "merged.safetensors"
    before = sorted(tmp_path.iterdir())
    words = ["merge", *files, "--method", "Ties", "--output", output]
    told = run(*words, "--dry-run", "true")
    assert told.code == 0, told.err
    assert sorted(tmp_path.iterdir()) == before
    lines = told.out.splitlines()
    assert lines[-1] == "nothing was written"
    counts = dict(re.findall(r"^  (.+?): (\d+) tensors", told.out, re.MULTILINE))
    assert counts == {
        "merged": "3",
        "statistics of BatchNorm, merged": "1",
        "merged as they are tied": "1",
        "copied, unchanged by every expert": "1",
        "copied, not floating-point": "1",
        "copied, ignored": "1",
        "left out of a": "1",
        "left out of b": "1",
    }
    assert "reads 7.0 kB 2 times" in told.out  # 3 models of (512 + 64 + 5) floats
    done = run(*words)
    assert done.code == 0, done.err
    merged, base = load_file(output), load_file(tmp_path / "base.safetensors")
    changed = [name for name in base if not torch.equal(merged[name], base[name])]
    assert len(changed) == 5
    size = sum(t.numel() * t.itemsize for t in merged.values())
    assert f"would hold 8 tensors, {size / 1000:.1f} kB" in lines[0]
    assert (
        "5 tensors of 2 experts merged, 3 of the base copied (1 unchanged by every expert, "
        "1 not floating-point, 1 ignored), 2 of experts left out, in "
    ) in done.out


def test_work_besides_reading_is_named(run, files, tmp_path):
    words = ["merge", *files, "--output", tmp_path / "m.safetensors", "--dry-run", "true"]
    told = run(*words, "--method", "TSVM").out
    assert "not counted: " in told


def test_a_dry_run_refuses_what_the_merge_refuses(run, files, tmp_path):
    words = ["merge", *files[:-2], "--method", "Ties", "--output", tmp_path / "m.safetensors"]
    for more in ([], ["--dry-run", "true"]):
        result = run(*words, *more)
        assert result.code == 2
        assert "head.weight" in result.err
    words = ["merge", *files, "--method", "RegMean", "--output", tmp_path / "m.safetensors"]
    assert "needs a network" in run(*words, "--dry-run", "true").err


def test_experts_that_changed_nothing(run, files, tmp_path):
    words = ["merge", *files[:2], "--experts.a", files[1], "--method", "Average"]
    told = run(*words, "--output", tmp_path / "m.safetensors", "--dry-run", "true")
    assert told.code == 0, told.err
    assert "no expert has changed a weight" in told.out
