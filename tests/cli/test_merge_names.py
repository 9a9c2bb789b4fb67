"""Files of several networks and files of other names, through the merge command."""

import pytest
import torch

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint

LAYERS = [f"blocks.{i}.w" for i in range(3)]


def weights(value):
    return {name: torch.full((4,), float(value)) for name in LAYERS}


@pytest.fixture
def merge(run, tmp_path):
    """Function that merges a base and experts a and b, given by what torch.save takes."""

    def call(base, a, b, *options):
        files = {"base": base, "experts.a": a, "experts.b": b}
        words = []
        for name, content in files.items():
            torch.save(content, tmp_path / f"{name}.pt")
            words += [f"--{name}", tmp_path / f"{name}.pt"]
        output = tmp_path / "merged.safetensors"
        result = run("merge", *words, "--output", output, "--method", "Average", *options)
        return result, open_checkpoint(output) if output.exists() else {}

    return call


def test_a_prefix_says_which_network_of_a_file_is_meant(merge):
    both = {"model": weights(1), "ema": weights(3)}
    averaged = {"state_dict": weights(5), "state_dict_ema": weights(7)}
    base = {"model": weights(0), "ema": weights(100)}
    result, found = merge(base, both, averaged)
    assert result.code == 2
    assert "the base has the names under several prefixes: 'model.', 'ema.'" in result.err
    result, found = merge(weights(0), both, averaged)
    assert result.code == 2
    assert "expert/a" in result.err
    assert "its names under several prefixes: 'model.', 'ema.'" in result.err
    given = ["--prefix.base", "model.", "--prefix.a", "ema", "--prefix.b", "state_dict_ema."]
    result, found = merge(base, both, averaged, *given)
    assert result.code == 0, result.err
    assert "left out" not in result.err
    assert set(found) == set(LAYERS)
    assert all(torch.equal(found[name], torch.full((4,), 5.0)) for name in LAYERS)
    assert found.metadata["prefix/expert/a"] == "ema"


def test_what_is_taken_of_several_parts_is_told_once_for_each_file(merge):
    averaged = {"state_dict": weights(4), "state_dict_ema": weights(7)}
    result, found = merge(weights(0), averaged, averaged)
    assert result.code == 0
    told = [line for line in result.err.splitlines() if "'state_dict_ema' (3 tensors)" in line]
    assert len(told) == 2
    assert all(line.startswith("warning: ") and "experts." in line for line in told)
    assert float(found[LAYERS[0]][0]) == 4


@pytest.mark.parametrize("spelling", ["head.w", "module.head.w", "*head*"])
def test_the_message_names_what_mends_it(merge, spelling):
    expert = {f"module.{name}": tensor for name, tensor in weights(2).items()}
    more = expert | {"module.head.w": torch.ones(2)}
    result, _ = merge(weights(0), more, expert)
    assert result.code == 2
    assert "1 not in the base" in result.err
    assert "--ignore '[head.w]'" in result.err
    result, found = merge(weights(0), more, expert, "--ignore", f'["{spelling}"]')
    assert result.code == 0, result.err
    assert float(found[LAYERS[0]][0]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prefix.c", "x"], "prefix.c: unknown expert 'c'; give it for one of base, a, b"),
        (["--prefix.a", "x"], "no tensor's name begins with prefix 'x.'"),
    ],
)
def test_prefixes_that_are_none(merge, options, message):
    result, found = merge(weights(0), weights(1), weights(2), *options)
    assert result.code == 2
    assert message in result.err
    assert not found


def test_nothing_is_written_where_nothing_can_be_merged(merge):
    statistics = torch.nn.BatchNorm1d(3, affine=False).state_dict()
    codes = [weights(0) | {"codes": torch.tensor(k)} for k in range(3)]
    adapters = [
        {"q.lora_A": torch.full((2,), k), "q.lora_B": torch.full((2,), k)} for k in (0.0, 1.0)
    ]
    for given, message in (
        ([statistics] * 3, "holds only BatchNorm statistics"),
        ([weights(0), statistics, weights(1)], "expert 'a' holds only BatchNorm statistics"),
        (codes, "not merged but changed: codes"),
        ([adapters[0], adapters[1], adapters[1]], "merge_and_unload"),
    ):
        result, found = merge(*given)
        assert result.code == 2
        assert message in result.err
        assert not found


def test_shards_in_subfolders_are_merged_and_told_apart(run, tmp_path):
    names = {}
    for task in ("base", "a"):
        folder = tmp_path / task
        save_checkpoint(weights(ord(task[0])), folder / "parts", max_shard_size=16)
        index = folder / "parts" / "model.safetensors.index.json"
        text = index.read_text().replace('"model-', '"parts/model-')
        (folder / "model.safetensors.index.json").write_text(text)
        index.unlink()
        names[task] = folder
    output = tmp_path / "m.safetensors"
    words = ["--base", names["base"], "--experts.a", names["a"], "--output", output]
    result = run("merge", *words, "--method", "Average")
    assert result.code == 0, result.err
    assert float(open_checkpoint(output)[LAYERS[0]][0]) == ord("a")
