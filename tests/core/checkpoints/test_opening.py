"""What a path means, and true messages about files that hold no checkpoint."""

import gzip
import json
import os
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint, select
from lightning_merge.core.checkpoints.digests import file_fingerprint, file_hash
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.ignore import taking_part

STATE = {"a.w": torch.arange(4.0), "b.w": torch.ones(2, 3)}


def assert_same(found, wanted=STATE):
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def refusal(path):
    with pytest.raises(InputError) as fault:
        open_checkpoint(path)
    text = str(fault.value)
    assert str(path) in text
    assert "damaged" not in text
    return text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.gguf", b"GGUF\x03" + bytes(99), "a GGUF file"),
        ("model.bin", b"GGUF\x03" + bytes(99), "a GGUF file"),
        ("ggml.bin", b"tjgg" + bytes(99), "a GGML file"),
        ("tf_model.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
        ("x.safetensors", b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
        ("x.onnx", b"\x08\x07\x12\x07pytorch", "an ONNX graph"),
        ("flax_model.msgpack", b"\x82\xa6params\x80", "from_flax=True"),
        ("x.npy", b"\x93NUMPY\x01", "a NumPy array"),
        ("x.pt.xz", b"\xfd7zXZ\x00", "compressed with xz: unpack it"),
        ("x.zst", b"\x28\xb5\x2f\xfd", "compressed with zstd"),
        ("x.tflite", bytes(4) + b"TFL3", "TensorFlow Lite"),
        ("saved_model.pb", b"\x08\x01\x12", "a TensorFlow graph"),
        ("__0_0.distcp", b"PK\x03", "dcp_to_torch"),
        ("x.pt", b"<!DOCTYPE html><html>", "a web page"),
        ("x.ckpt", b"\n <HTML>", "a web page"),
        ("x.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_other_formats_are_named(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    if name != "__0_0.distcp":
        assert words in refusal(tmp_path / name)
    if name.endswith((".h5", ".onnx", ".msgpack", ".distcp", ".pb", ".gguf")):
        assert words in refusal(tmp_path) or name.split(".")[1] in refusal(tmp_path)


def test_archives_are_named(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    assert "an archive of NumPy arrays" in refusal(tmp_path / "x.npz")
    members = {
        "x.keras": ["config.json", "metadata.json", "model.weights.h5"],
        "x.pt2": ["x/archive_format", "x/models/model.json"],
        "x.zip": ["model.safetensors"],
    }
    words = ["a Keras checkpoint", "a torch.export program", "a zip archive.*unpack it"]
    for (name, names), expected in zip(members.items(), words, strict=True):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in names:
                archive.writestr(member, b"x")
        with pytest.raises(InputError, match=expected):
            open_checkpoint(tmp_path / name)
    torch.save(STATE, tmp_path / "x.pt")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "x.pt")
    assert "a tar archive" in refusal(tmp_path / "x.tar")
    (tmp_path / "x.pt.gz").write_bytes(gzip.compress((tmp_path / "x.pt").read_bytes()))
    assert "compressed with gzip" in refusal(tmp_path / "x.pt.gz")


def test_a_suffix_alone_condemns_nothing(tmp_path):
    for name in ("x.pb", "x.h5", "x.msgpack"):
        torch.save(STATE, tmp_path / name)
        assert_same(open_checkpoint(tmp_path / name))
        save_checkpoint(STATE, tmp_path / name)
        assert_same(open_checkpoint(tmp_path / name))


def sharded(folder, places):
    """An index and one shard for each tensor, at the given places."""
    folder.mkdir(exist_ok=True)
    for (name, tensor), place in zip(STATE.items(), places, strict=True):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint({name: tensor}, folder / place)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict(zip(STATE, places, strict=True))}))
    return index


@pytest.mark.parametrize(
    "places",
    [
        ("shards/1.safetensors", "shards/2.safetensors"),
        ("1.safetensors", "a/b/2.safetensors"),
        ("./1.safetensors", "a/./2.safetensors"),
    ],
)
def test_shards_may_lie_below_their_index(places, tmp_path):
    index = sharded(tmp_path, places)
    assert_same(open_checkpoint(index))
    assert_same(open_checkpoint(tmp_path))
    for digest in (file_hash, file_fingerprint):
        before = [digest(index), digest(tmp_path)]
        save_checkpoint({"b.w": torch.zeros(2, 3)}, tmp_path / places[1])
        assert before[0] != digest(index)
        assert before[1] != digest(tmp_path)
        save_checkpoint({"b.w": STATE["b.w"]}, tmp_path / places[1])
        assert before == [digest(index), digest(tmp_path)]


@pytest.mark.parametrize(
    "place", ["../x.safetensors", "a/../../x.safetensors", "ABSOLUTE", "", "."]
)
def test_shards_may_not_lie_above_it(place, tmp_path):
    outside = save_checkpoint(STATE, tmp_path / "x.safetensors")
    index = sharded(tmp_path / "folder", ("1.safetensors", "2.safetensors"))
    place = str(outside) if place == "ABSOLUTE" else place
    index.write_text(json.dumps({"weight_map": dict.fromkeys(STATE, place)}))
    assert "which is not below its folder" in refusal(index)


def test_what_is_no_index_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert "is not an index of shards: give the file of weights" in refusal(
        tmp_path / "config.json"
    )
    index = sharded(tmp_path / "x", ("1.safetensors", "2.safetensors"))
    (tmp_path / "x" / "2.safetensors").unlink()
    assert "'2.safetensors', which is missing" in refusal(index)


@pytest.fixture
def cache(tmp_path):
    """Function that makes the Hub's cache of a repository, with given snapshots."""

    def make(*revisions, complete=True):
        root = tmp_path / "models--owner--name"
        (root / "blobs").mkdir(parents=True)
        (root / "refs").mkdir()
        (root / "snapshots").mkdir()
        if complete:
            save_checkpoint(STATE, root / "blobs" / "0ab1")
        for revision in revisions:
            folder = root / "snapshots" / revision
            folder.mkdir()
            (folder / "model.safetensors").symlink_to("../../blobs/0ab1")
        return root

    return make


def test_the_cache_of_the_hub(cache):
    root = cache("c0ffee")
    paths = [root, root / "snapshots", root / "snapshots" / "c0ffee"]
    for path in paths:
        assert_same(open_checkpoint(path))
        assert file_hash(path) == file_hash(paths[-1])
    (root / "snapshots" / "decade").mkdir()
    for path in paths[:2]:
        assert "several snapshots: c0ffee, decade. Give the path of one" in refusal_in(path)


def refusal_in(path):
    with pytest.raises(InputError) as fault:
        open_checkpoint(path)
    return str(fault.value)


def test_downloads_that_were_not_finished(cache, tmp_path):
    root = cache("c0ffee", complete=False)
    file = root / "snapshots" / "c0ffee" / "model.safetensors"
    for path in (root, file.parent, file):
        text = refusal_in(path)
        assert f"{file} is a link to ../../blobs/0ab1, which does not exist" in text
        assert "the download was not finished" in text
    file.unlink()
    file.parent.rmdir()
    assert "holds no snapshot: the download was not finished" in refusal_in(root)
    index = sharded(tmp_path / "x", ("1.safetensors", "2.safetensors"))
    (tmp_path / "x" / "2.safetensors").unlink()
    (tmp_path / "x" / "2.safetensors").symlink_to("../nowhere")
    text = refusal_in(index)
    assert "'2.safetensors', a link to ../nowhere, which does not exist" in text


@pytest.mark.parametrize("name", ["x.pth.tar", "x.tar", "model.pkl", "x.pth", "pytorch_model.bin"])
def test_files_that_are_found_in_a_folder(name, tmp_path):
    torch.save({"state_dict": STATE, "epoch": 1}, tmp_path / name)
    for other in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        torch.save({"x": 1}, tmp_path / other)
    (tmp_path / "random_states_0.pkl").touch()
    assert_same(open_checkpoint(tmp_path))
    torch.save(STATE, tmp_path / f"y{name}")
    assert "several checkpoints" in refusal(tmp_path)


def test_folders_without_a_checkpoint_of_their_own(tmp_path):
    for name in ("unet", "vae", "tokenizer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert "holds no checkpoint (.safetensors, " in refusal(tmp_path)
    for name in ("unet", "vae"):
        save_checkpoint(STATE, tmp_path / name / "model.safetensors")
    assert "holds checkpoints in unet, vae: give one of these" in refusal(tmp_path)
    (tmp_path / "zero_to_fp32.py").touch()
    assert "a DeepSpeed checkpoint: run python zero_to_fp32.py" in refusal(tmp_path)
    (tmp_path / "__0_0.distcp").touch()
    assert "dcp_to_torch" in refusal(tmp_path)


PACKED = [name for name in ("float8_e8m0fnu", "float4_e2m1fn_x2") if hasattr(torch, name)]


@pytest.mark.parametrize("kind", PACKED)
def test_packed_types_are_copied_as_they_are(kind, tmp_path):
    """Against the library of the format's authors, who count both numbers of a byte."""
    packed = torch.arange(12, dtype=torch.uint8).view(3, 4).view(getattr(torch, kind))
    tensors = {"scales": packed, "none": packed[:0], "w": torch.ones(2)}
    save_file(tensors, tmp_path / "theirs.safetensors")
    ours = open_checkpoint(tmp_path / "theirs.safetensors")
    again = save_checkpoint(ours, tmp_path / "ours.safetensors")
    for found in (ours, load_file(again)):
        assert found["scales"].dtype == packed.dtype
        assert found["none"].shape == (0, 4)
        assert torch.equal(found["scales"].view(torch.uint8), packed.view(torch.uint8))
    parts = taking_part({"base": ours, "a": ours}, ["scales", "none"])
    assert list(parts["base"]) == list(parts["a"]) == ["w"]


def test_types_that_torch_lacks_are_refused_when_they_are_needed(tmp_path):
    entries = {
        "odd": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]},
        "w": {"dtype": "U8", "shape": [1], "data_offsets": [3, 4]},
    }
    header = json.dumps(entries).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes([0, 0, 0, 7]))
    found = open_checkpoint(path)
    assert list(found) == ["odd", "w"]
    assert found.shape("odd") == (4,)
    assert found["w"] == 7
    assert list(select(found, ["w"])) == ["w"]
    base = found.renamed({"w": "w"})
    assert list(taking_part({"base": base, "a": found}, ["odd"])["a"]) == ["w"]
    every = {"base": found, "a": found}
    for ask in (lambda: found["odd"], lambda: found.dtype("odd"), lambda: taking_part(every, [])):
        with pytest.raises(InputError, match=r"'odd' as F6_E2M3.*--ignore"):
            ask()


def test_links_to_files_are_followed(tmp_path):
    save_checkpoint(STATE, tmp_path / "x.safetensors")
    os.symlink("x.safetensors", tmp_path / "y.safetensors")
    assert_same(open_checkpoint(tmp_path / "y.safetensors"))
