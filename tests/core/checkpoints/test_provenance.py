"""Records of the files that a merged file was made from."""

import pytest
import torch

import lightning_merge as lm
from lightning_merge.core.checkpoints.digests import (
    file_fingerprint,
    file_hash,
    file_record,
    is_recorded,
)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A base, two experts, and what `merge` makes of them."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("base", "a", "b")):
        lm.save_checkpoint({"weight": torch.full((4,), float(number))}, f"{name}.safetensors")
    experts = {task: f"{task}.safetensors" for task in "ab"}
    lm.merge("base.safetensors", experts, lm.Average(), output="merged.safetensors")
    return experts


def test_files_are_those_recorded(written):
    found = lm.verify_provenance("merged.safetensors", base="base.safetensors", experts=written)
    assert found == []
    assert lm.verify_provenance("merged.safetensors") == []


def test_every_mismatch_is_named(written):
    experts = {"a": "b.safetensors", "c": "a.safetensors"}
    found = lm.verify_provenance("merged.safetensors", base="gone.safetensors", experts=experts)
    assert [line.partition(":")[0] for line in found] == [
        "base", "expert/a", "expert/c", "expert/b"
    ]  # fmt: skip
    assert "gone.safetensors" in found[0]
    assert "b.safetensors is not the recorded sample:" in found[1]
    assert found[2:] == ["expert/c: not recorded", "expert/b: recorded, but not given"]
    assert "gone" in lm.verify_provenance("gone.safetensors")[0]


@pytest.mark.parametrize("kind", ["sha256", "sample"])
def test_a_record_says_its_kind(kind, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    record = file_record(one, kind)
    digest = {"sha256": file_hash, "sample": file_fingerprint}[kind](one)
    assert record == f"{kind}:{digest}"
    assert is_recorded(one, record)
    assert is_recorded(one, digest)
    assert not is_recorded(other, record)
    assert not is_recorded(other, digest)
    assert not is_recorded(one, f"md5:{digest}")
    assert not is_recorded(one, f"{'sample' if kind == 'sha256' else 'sha256'}:{digest}")
