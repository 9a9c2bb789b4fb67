"""What `merge` and `fit` make of one set of published files: the same bits under the same names."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_zoo import TASKS

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint

PREFIX = "model.visual."
METHODS = {
    "Ties": {"density": 0.3},
    "PCB": {"density": 0.2},
    "Average": {"transforms": [{"class_path": "LwPTV", "init_args": {"prune_ratio": 0.5}}]},
    "TaskArithmetic": {"transforms": [{"class_path": "Dare", "init_args": {"seed": 4}}]},
    "TSVM": {},
    "LiNeS": {},
}


@pytest.fixture
def pickles(own_files):
    """The zoo as the papers publish theirs: the tower in a larger model of which no more is tuned.

    The published pickles hold 152 tensors of the visual tower and 6 beside it.
    """
    generator = torch.Generator().manual_seed(5)
    text = {
        "model.positional_embedding": torch.randn(7, 4, generator=generator),
        "model.text_projection": torch.randn(4, 4, generator=generator),
        "model.logit_scale": torch.tensor(4.6052),
        "model.token_embedding.weight": torch.randn(50, 4, generator=generator),
        "model.ln_final.weight": torch.ones(4),
        "model.ln_final.bias": torch.zeros(4),
    }
    for file in (own_files.base, *own_files.expert.values()):
        tower = {PREFIX + name: tensor for name, tensor in open_checkpoint(file).items()}
        torch.save(text | tower, file.replace(".safetensors", ".pt"))
    own_files.base = own_files.base.replace(".safetensors", ".pt")
    own_files.experts = own_files.experts.replace(".safetensors", ".pt")
    own_files.expert = {t: f.replace(".safetensors", ".pt") for t, f in own_files.expert.items()}
    own_files.text = text
    return own_files


def merged(run, files, output, *options):
    experts = [word for task in TASKS for word in (f"--experts.{task}", files.expert[task])]
    result = run("merge", "--base", files.base, *experts, "--output", output, *options)
    assert result.code == 0, result.err
    return load_file(output), result


@pytest.fixture
def fitted(run, config, pickles, tmp_path):
    """Fit with a callback of every method; return the run folder."""
    callbacks = [
        {
            "class_path": "MergeCallback",
            "init_args": {
                "name": name,
                "method": {"class_path": name, "init_args": options},
            },
        }
        for name, options in METHODS.items()
    ]
    path = config(files=pickles, trainer__callbacks=callbacks, trainer__max_epochs=1)
    result = run("fit", "--config", path, "--seed_everything", 0)
    assert result.code == 0, result.err
    return tmp_path / "run"


def test_both_routes_give_the_same_bits(fitted, run, pickles, tmp_path):
    for name, options in METHODS.items():
        words = [w for k, v in options.items() for w in (f"--method.{k}", json.dumps(v))]
        whole, _ = merged(run, pickles, tmp_path / f"{name}.safetensors", "--method", name, *words)
        tower = load_file(fitted / "merged" / f"{name}.safetensors")
        assert set(whole) == set(tower) | set(pickles.text)
        for tensor, values in tower.items():
            assert torch.equal(whole[tensor], values), (name, tensor)
        assert all(torch.equal(whole[tensor], t) for tensor, t in pickles.text.items())


def test_what_was_learned_merges_the_runs_own_pickles(fitted, run, pickles, tmp_path):
    learned = ["--method", "LearnedCoefficients"]
    learned += ["--method.file", fitted / "coefficients.safetensors"]
    whole, _ = merged(run, pickles, tmp_path / "own.safetensors", *learned)
    (file,) = [f for f in (fitted / "merged").iterdir() if f.stem not in METHODS]
    for tensor, values in load_file(file).items():
        torch.testing.assert_close(whole[tensor], values, rtol=1e-5, atol=1e-6)


def test_the_published_reading_counts_all_tensors(run, pickles, tmp_path):
    """A fifth of all entries, those that nobody has changed included, is more of the others."""
    kept = {}
    for scope in ("changed", "all"):
        output = tmp_path / f"{scope}.safetensors"
        options = ["--method", "Ties", "--scope", scope]
        found, _ = merged(run, pickles, output, *options)
        base = open_checkpoint(pickles.base)
        kept[scope] = sum(int((found[name] != base[name]).sum()) for name in base)
        assert open_checkpoint(output).metadata["scope"] == scope
    assert kept["all"] > kept["changed"] > 0


def test_what_is_merged_loads_where_the_base_does(fitted, pickles, encoder, tmp_path):
    for file in sorted((fitted / "merged").glob("*.safetensors")):
        own = encoder.load(file).backbone.state_dict()
        stored = load_file(file)
        assert all(torch.equal(stored[PREFIX + name], tensor) for name, tensor in own.items())


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_folder_in_shards_has_the_bases_configuration(run, files, tmp_path, as_folder):
    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(files.base, base / "model.safetensors")
    own = {"config.json", "tokenizer.json", "preprocessor_config.json", "merges.txt", "vocab.txt"}
    for name in (*own, "notes.md", "results.json"):
        (base / name).write_text(f'{{"{name}": 1, "model_type": "bert"}}', encoding="utf-8")
    experts = [word for task in TASKS for word in (f"--experts.{task}", files.expert[task])]
    given = base if as_folder else base / "model.safetensors"
    result = run(
        "merge", "--base", given, *experts, "--output", tmp_path / "out", "--method", "Average",
        "--max-shard-size", "5KB",
    )  # fmt: skip
    assert result.code == 0, result.err
    copied = {f.name for f in (tmp_path / "out").iterdir() if f.suffix != ".safetensors"}
    assert copied == {*own, "model.safetensors.index.json"}
    assert all((tmp_path / "out" / n).read_text() == (base / n).read_text() for n in own)
    assert "AutoModel.from_pretrained" in result.out
