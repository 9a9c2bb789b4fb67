"""A run that goes on takes a merged file only if nothing that it depends on has changed."""

import importlib
import sys

import pytest
import torch

from lightning_merge.runs import merging
from lightning_merge.runs.merging import Target, ZooMerger

OWN = """
from dataclasses import dataclass

from lightning_merge.methods import TaskArithmetic


@dataclass(frozen=True)
class Mine(TaskArithmetic):
    '''A method of a user's own.'''
"""


@pytest.fixture
def merge(zoo, encoder, data, tmp_path, monkeypatch):
    """Merge by a user's own method as a run that goes on; say whether the file was written."""
    (tmp_path / "own_method.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("own_method").Mine
    data.prepare_data()
    data.preprocess = encoder.preprocess
    data.setup("fit")
    merger = ZooMerger.open(zoo, encoder, data, torch.device("cpu"))
    target = Target(tmp_path / "merged.safetensors")

    def go_on(**options):
        before = target.file.stat().st_ino if target.file.exists() else None
        merger.write(mine(**options), [target], going_on=True)
        return target.file.stat().st_ino != before

    yield go_on
    del sys.modules["own_method"]


def test_the_same_merge_is_taken(merge):
    assert merge()
    assert not merge()
    assert merge(scale=0.7)


def test_another_version_merges_anew(merge, monkeypatch):
    assert merge()
    monkeypatch.setattr(merging, "__version__", "another")
    assert merge()
    assert not merge()


def test_code_of_the_users_own_counts(merge, tmp_path):
    assert merge()
    (tmp_path / "own_method.py").write_text(f"{OWN}# changed\n")
    assert merge()
    assert not merge()


def test_another_expert_merges_anew(merge, monkeypatch, zoo):
    assert merge()
    hashes = zoo.hashes(["reds"])
    monkeypatch.setattr(
        type(zoo), "hashes", lambda self, tasks: {**hashes, "expert/reds": "sha256:0"}
    )
    assert merge()
