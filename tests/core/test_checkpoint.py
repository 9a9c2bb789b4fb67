import copy
import gc
import json
import os
import pickle
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_merge.core.checkpoint import (
    Checkpoint,
    as_checkpoint,
    file_hash,
    match_names,
    open_checkpoint,
    save_checkpoint,
    select,
)
from lightning_merge.core.errors import InputError
from lightning_merge.core.files import atomic_write, file_fingerprint
from lightning_merge.core.flat import BLOCK
from lightning_merge.core.names import is_statistic


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(5, 3, generator=generator),
        "b.bias": torch.randn(5, generator=generator).to(torch.bfloat16),
        "a.weight": torch.randn(2, 2, generator=generator).half(),
        "a.count": torch.tensor(7),
        "a.mask": torch.tensor([True, False, True]),
        "a.none": torch.empty(0, 4),
        "a.spectrum": torch.randn(2, generator=generator, dtype=torch.complex64),
    }


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


B = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def with_header(folder, header, content=bytes(8)):
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


class TestSave:
    def test_agrees_with_the_safetensors_library(self, tensors, tmp_path):
        path = save_checkpoint(tensors, tmp_path / "new" / "x.safetensors", metadata={"a": "ü"})
        assert_same(load_file(path), tensors)
        assert_same(open_checkpoint(path), tensors)
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt", "a": "ü"}
        save_file(tensors, tmp_path / "theirs.safetensors")
        assert_same(open_checkpoint(tmp_path / "theirs.safetensors"), tensors)

    def test_keeps_order_and_gives_the_same_bytes(self, tmp_path):
        state = nn.Sequential(*(nn.Linear(2, 2) for _ in range(12))).state_dict()
        metadata = {"method": "Ties", "base": "0", "seed": "1"}
        paths = [
            save_checkpoint(state.items(), tmp_path / f"{i}.safetensors", metadata=metadata)
            for i in range(3)
        ]
        assert list(open_checkpoint(paths[0])) == list(state)
        assert len({path.read_bytes() for path in paths}) == 1

    def test_views_and_tied_tensors_are_written_in_full(self, tmp_path):
        weight = torch.arange(12.0).reshape(3, 4).requires_grad_()
        state = {"t": weight.T, "tied": weight, "row": weight[1], "conj": torch.tensor([1j]).conj()}
        path = save_checkpoint(state, tmp_path / "x.safetensors")
        assert_same(load_file(path), {name: t.detach() for name, t in state.items()})

    def test_refuses_to_overwrite(self, tensors, tmp_path):
        path = tmp_path / "x.safetensors"
        path.write_text("precious")
        with pytest.raises(InputError, match=r"x\.safetensors exists"):
            save_checkpoint(tensors, path, overwrite=False)
        assert path.read_text() == "precious"
        save_checkpoint(tensors, path)
        assert_same(open_checkpoint(path), tensors)

    @pytest.mark.parametrize(
        ("bad", "metadata"),
        [
            ({}, None),
            ([("a", torch.ones(1)), ("a", torch.ones(1))], None),
            ({"a": [1.0]}, None),
            ({"a": torch.eye(2).to_sparse()}, None),
            ({"a": torch.ones(1, dtype=torch.complex128)}, None),
            ({"__metadata__": torch.ones(1)}, None),
            ({1: torch.ones(1)}, None),
            ({"a": torch.ones(1)}, {"seed": 1}),
        ],
    )
    def test_bad_input_leaves_nothing_behind(self, bad, metadata, tmp_path):
        with pytest.raises(InputError):
            save_checkpoint(bad, tmp_path / "x.safetensors", metadata=metadata)
        assert list(tmp_path.iterdir()) == []

    def test_interruption_leaves_the_old_file(self, tmp_path):
        path = save_checkpoint({"a": torch.ones(1)}, tmp_path / "x.safetensors")

        def interrupted():
            yield "a", torch.zeros(1)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(interrupted(), path)
        assert os.listdir(tmp_path) == ["x.safetensors"]
        assert open_checkpoint(path)["a"] == 1


class TestAtomicWrite:
    def test_suffix_permissions_and_rename(self, tmp_path):
        path = tmp_path / "a.b" / "figure.png"
        with atomic_write(path) as temporary:
            assert temporary.suffix == ".png"
            assert temporary.parent == path.parent
            temporary.write_text("new")
            assert not path.exists()
        assert path.read_text() == "new"
        (tmp_path / "plain").touch()
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(
            (tmp_path / "plain").stat().st_mode
        )

    def test_places_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        for path in (tmp_path, tmp_path / "file" / "x.json", tmp_path / ("x" * 300)):
            with pytest.raises(InputError), atomic_write(path):
                pytest.fail("must not begin")


class TestOpen:
    @pytest.mark.parametrize("save", [save_checkpoint, torch.save], ids=["safetensors", "torch"])
    def test_is_lazy_and_read_only(self, save, tensors, tmp_path):
        path = tmp_path / "x"
        save(tensors, path)
        checkpoint = open_checkpoint(path)
        assert checkpoint.path == path
        assert checkpoint.shape("b.weight") == (5, 3)
        assert checkpoint.dtype("b.bias") == torch.bfloat16
        assert "b.bias" in checkpoint
        assert "nothing" not in checkpoint
        assert len(checkpoint) == len(tensors)
        with pytest.raises(TypeError):
            checkpoint["b.bias"] = torch.ones(5)
        before = path.read_bytes()
        checkpoint["b.weight"].zero_()  # a copy in memory
        assert path.read_bytes() == before

    @pytest.mark.parametrize("index", [True, False])
    def test_shards(self, index, tensors, tmp_path):
        names = list(tensors)
        files = {"s-1.safetensors": names[:3], "s-2.safetensors": names[3:]}
        for file, part in files.items():
            save_checkpoint({name: tensors[name] for name in part}, tmp_path / file)
        weight_map = {name: file for file, part in files.items() for name in part}
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": weight_map}))
        checkpoint = open_checkpoint(path if index else tmp_path)
        assert_same(checkpoint, tensors)
        assert checkpoint.metadata == {"total_size": "9"}

        for wrong in ({"a": "../s-1.safetensors"}, {"a": "s-3.safetensors"}, {"a": 3}, {}, 7):
            path.write_text(json.dumps({"weight_map": wrong}))
            with pytest.raises(InputError, match=r"index\.json"):
                open_checkpoint(path)
        path.write_text(json.dumps({"weight_map": {"b.weight": "s-2.safetensors"}}))
        with pytest.raises(InputError, match=r"b\.weight"):
            open_checkpoint(path)

    def test_hub_folder(self, tensors, tmp_path):
        with pytest.raises(InputError, match="no checkpoint"):
            open_checkpoint(tmp_path)
        (tmp_path / "config.json").write_text("{}")
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        assert_same(open_checkpoint(tmp_path), tensors)
        save_checkpoint({"only": torch.ones(1)}, tmp_path / "model.safetensors")
        assert list(open_checkpoint(tmp_path)) == ["only"]
        save_checkpoint({"only": torch.ones(1)}, tmp_path / "open_clip_model.safetensors")
        with pytest.raises(InputError, match=r"model\.safetensors, open_clip_model\.safetensors"):
            open_checkpoint(tmp_path)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("x.pt", None, "does not exist"),
            ("x.pt", b"", "empty"),
            ("x.safetensors", b"", "empty"),
            ("x.safetensors", b"{", "damaged"),
            ("x.safetensors", b"<html>not found</html>", "web page"),
            ("x.bin", b"not found at all" * 9, "damaged"),
            ("x.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            ("x.safetensors", (2**60).to_bytes(8, "little") + b"{}", "damaged"),
            ("x.safetensors", (2).to_bytes(8, "little") + b"{}", "no tensors"),
            ("x.safetensors", (2).to_bytes(8, "little") + b"[]", "damaged"),
        ],
    )
    def test_unreadable(self, name, content, message, tmp_path):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message) as fault:
            open_checkpoint(tmp_path / name)
        assert str(tmp_path / name) in str(fault.value)

    @pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
    def test_files_are_closed(self, kind, tmp_path):
        gc.collect()
        before = len(os.listdir("/dev/fd"))
        checkpoint = stored_as(kind, {"a": torch.ones(2)}, tmp_path)
        view = checkpoint.renamed({"b": "a"})
        del checkpoint
        assert view["b"].sum() == 2
        assert len(os.listdir("/dev/fd")) == before + 1
        del view
        assert len(os.listdir("/dev/fd")) == before

    def test_open_files_are_not_copied(self, tmp_path):
        checkpoint = stored_as("safetensors", {"a": torch.ones(2)}, tmp_path)
        for duplicate in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="open the checkpoint again"):
                duplicate(checkpoint)

    def test_pipes_do_not_block(self, tmp_path):
        for name in ("x.safetensors", "x.json", "x"):
            os.mkfifo(tmp_path / name)
            with pytest.raises(InputError, match="no regular file"):
                open_checkpoint(tmp_path / name)

    @pytest.mark.parametrize("offsets", [[0, 4], [0, 2**50], [4, 8], [8, 0], [-8, 0], [0]])
    @pytest.mark.parametrize("shape", [[2], [2**40, 2**40], [-2], ["2"]])
    def test_lying_headers(self, offsets, shape, tmp_path):
        path = with_header(
            tmp_path, {"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}, "b": B}
        )
        with pytest.raises(InputError, match=r"x\.safetensors"):
            open_checkpoint(path)

    @pytest.mark.parametrize(
        "entry",
        [
            {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},  # the place of b
            {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
            {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},  # beyond the end
            {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]},  # within b
            {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [8, 8]},
            {"dtype": "F32", "shape": [0] * 65, "data_offsets": [8, 8]},
            {"dtype": "F32", "shape": [False], "data_offsets": [8, 8]},
            {"dtype": "F32", "shape": [0.0], "data_offsets": [8, 8]},
            {"dtype": "F32", "shape": [0], "data_offsets": [8, 8, 8]},
            {"dtype": "F4", "shape": [3], "data_offsets": [8, 8]},
            {"dtype": "f4", "shape": [0], "data_offsets": [8, 8]},
            {"dtype": ["F32"], "shape": [0], "data_offsets": [8, 8]},
            {"dtype": "F32", "shape": [0]},
            [],
            None,
        ],
    )
    def test_one_false_entry(self, entry, tmp_path):
        honest = {"dtype": "F32", "shape": [0, 3], "data_offsets": [8, 8]}
        found = open_checkpoint(with_header(tmp_path, {"b": B, "a": honest}))
        assert list(found) == ["b", "a"]
        with pytest.raises(InputError, match=r"x\.safetensors"):
            open_checkpoint(with_header(tmp_path, {"b": B, "a": entry}))

    @pytest.mark.parametrize(
        "header",
        [
            b'{"b":%s,"b":%s}',
            b'{"b":%s,"\\ud800":%s}',
            b'{"b":%s,"__metadata__":{"a":1}}',
            b'{"b":%s,"__metadata__":[1]}',
            b'{"b":%s,"__metadata__":{"a":"\\ud800"}}',
            b'{"b":%s}x',
            b'{"b":%s,"\xff":%s}',
            b"[" * 100_000,
            b'{"a":' * 100_000,
        ],
    )
    def test_headers_that_are_none(self, header, tmp_path):
        path = with_header(tmp_path, header.replace(b"%s", json.dumps(B).encode()))
        with pytest.raises(InputError, match=r"x\.safetensors is truncated or damaged"):
            open_checkpoint(path)

    def test_lightning_checkpoint_by_prefix(self, tmp_path):
        state = nn.Linear(2, 3).state_dict()
        stored = {f"encoder.backbone.{name}": tensor for name, tensor in state.items()}
        stored["heads.mnist.weight"] = torch.ones(1)
        torch.save({"state_dict": stored, "epoch": 3, "loops": {}}, tmp_path / "x.ckpt")
        for prefix in ("encoder.backbone", "encoder.backbone."):
            assert_same(open_checkpoint(tmp_path / "x.ckpt", prefix=prefix), state)
        assert_same(open_checkpoint(tmp_path / "x.ckpt", keys=list(state)), state)
        with pytest.raises(InputError, match="begin with: encoder, heads"):
            open_checkpoint(tmp_path / "x.ckpt", prefix="model")


DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.float8_e4m3fn, torch.uint16, torch.uint32),
]


def stored_as(kind, tensors, folder):
    """A checkpoint of the tensors in one of the ways in which they can be had."""
    if kind == "memory":
        return as_checkpoint(tensors)
    path = folder / kind
    if kind == "safetensors":
        save_checkpoint(tensors, path)
    elif kind == "shards":
        save_checkpoint(tensors, path, max_shard_size=1)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    return open_checkpoint(path)


class TestReadInto:
    @pytest.mark.parametrize("kind", ["memory", "safetensors", "shards", "zip", "legacy"])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_equals_slicing(self, kind, dtype, tmp_path):
        values = torch.arange(120).remainder(100).to(dtype)
        tensors = {
            "odd": torch.ones(3, dtype=torch.int8),
            "flat": values,
            "scalar": values[5],
            "empty": values[:0].view(0, 3),
            "rows": values.view(2, 3, 20)[:, 1:],
            "columns": values.view(10, 12)[:, 3:7],
            "transposed": values.view(4, 6, 5).permute(2, 0, 1),
            "stepped": values[1::3],
        }
        checkpoint = stored_as(kind, tensors, tmp_path)
        wide = torch.complex128 if dtype.is_complex else torch.float64
        for name, tensor in tensors.items():
            flat = tensor.to(wide).reshape(-1)  # equal() knows neither float8 nor uint16
            size = len(flat)
            for start, stop in ((0, size), (0, size // 2), (size // 3, size), (size, size)):
                for kind_of_out in (tensor.dtype, wide):
                    out = torch.zeros(stop - start, dtype=kind_of_out)
                    checkpoint.read_into(name, start, out)
                    assert torch.equal(out.to(wide), flat[start:stop])

    @pytest.mark.parametrize("kind", ["memory", "safetensors", "zip"])
    def test_blocks_and_strided_memory(self, kind, tmp_path):
        values = torch.randn(3, BLOCK)
        checkpoint = stored_as(kind, {"a": values, "b": values.T}, tmp_path).renamed(
            {"x": "a", "y": "b"}
        )
        for name, tensor in (("x", values), ("y", values.T)):
            flat = tensor.reshape(-1)[5:-7]
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                out = torch.empty(len(flat) + 9, dtype=dtype)[9:]
                checkpoint.read_into(name, 5, out)
                assert torch.equal(out, flat.to(dtype))

    @pytest.mark.gpu
    def test_to_a_gpu(self, tmp_path):
        values = torch.randn(BLOCK + 3)
        for kind in ("memory", "safetensors", "zip"):
            out = torch.empty(BLOCK + 1, device="cuda", dtype=torch.bfloat16)
            stored_as(kind, {"a": values}, tmp_path).read_into("a", 2, out)
            assert torch.equal(out.cpu(), values[2:].bfloat16())

    @pytest.mark.parametrize("kind", ["memory", "safetensors"])
    def test_runs_that_are_not_there(self, kind, tmp_path):
        checkpoint = stored_as(kind, {"a": torch.ones(2, 2)}, tmp_path)
        for start, size in ((0, 5), (3, 2), (-1, 2), (5, 0)):
            with pytest.raises(IndexError, match=r"'a' \(2, 2\)"):
                checkpoint.read_into("a", start, torch.empty(size))
        with pytest.raises(IndexError):
            checkpoint.read_into("a", 0, torch.empty(2, 2))
        with pytest.raises(KeyError):
            checkpoint.read_into("b", 0, torch.empty(1))

    @pytest.mark.parametrize("kind", ["safetensors", "shards", "zip"])
    def test_many_threads(self, kind, tmp_path):
        tensors = {f"{i}": torch.randn(1000) for i in range(8)}
        checkpoint = stored_as(kind, tensors, tmp_path)

        def read(i):
            out = torch.empty(500)
            checkpoint.read_into(str(i % 8), i, out)
            return torch.equal(out, tensors[str(i % 8)][i : i + 500])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(200)))


class TestChangedFiles:
    @pytest.fixture(params=["safetensors", "shards", "zip", "legacy"])
    def opened(self, request, tmp_path):
        """A checkpoint and the file that it reads tensor 'a' from."""
        checkpoint = stored_as(request.param, {"a": torch.arange(5000.0)}, tmp_path)
        path = tmp_path / request.param
        (path,) = path.glob("model-*") if path.is_dir() else [path]
        return checkpoint, path

    def test_cut_off(self, opened):
        checkpoint, path = opened
        os.truncate(path, path.stat().st_size // 2)
        checkpoint.read_into("a", 0, torch.empty(9))
        for read in (
            lambda: checkpoint["a"],
            lambda: checkpoint.read_into("a", 0, torch.ones(5000)),
        ):
            with pytest.raises(InputError, match="tensor 'a' is truncated") as fault:
                read()
            assert str(path) in str(fault.value)
        with pytest.raises(InputError, match=f"{path} changed"):
            checkpoint.check_unchanged()

    def test_replaced_or_removed(self, opened):
        checkpoint, path = opened
        checkpoint.check_unchanged()
        save_checkpoint({"a": torch.zeros(5000)}, path)
        assert torch.equal(checkpoint["a"], torch.arange(5000.0))  # the file that was opened
        with pytest.raises(InputError, match=f"{path} changed"):
            checkpoint.check_unchanged()
        path.unlink()
        with pytest.raises(InputError, match=f"{path} changed"):
            checkpoint.renamed({"b": "a"}).check_unchanged()
        assert checkpoint["a"].sum() > 0

    def test_written_to(self, opened):
        checkpoint, path = opened
        with path.open("r+b") as file:
            file.write(file.read(1))
        os.utime(path, ns=(0, 0))
        with pytest.raises(InputError, match=f"{path} changed"):
            checkpoint.check_unchanged()

    def test_a_disk_that_fails(self, opened, tmp_path):
        checkpoint, path = opened
        other = os.open(tmp_path, os.O_RDONLY)  # a folder, which gives an error when it is read
        os.dup2(other, checkpoint._entries["a"].source._descriptor)
        os.close(other)
        with pytest.raises(InputError, match=f"{path}: tensor 'a' cannot be read: Is a directory"):
            checkpoint.read_into("a", 0, torch.empty(5))

    def test_memory_never_changes(self):
        as_checkpoint({"a": torch.ones(1)}).check_unchanged()


class TestNames:
    LAYERS = ("conv1.weight", "blocks.0.weight", "blocks.1.weight")

    @pytest.mark.parametrize(
        ("wanted", "stored"),
        [
            ("", ""),
            ("", "module."),
            ("", "state_dict.model.visual."),
            ("", "encoder.backbone."),
            ("visual.", ""),
            ("visual.", "visual."),
            ("visual.", "model.visual."),
            ("vision_model.", "encoder."),
            ("", "_orig_mod."),
            ("module.visual.", "visual."),
            ("a.b.", "_orig_mod.a.module.b."),
        ],
    )
    def test_any_common_prefix(self, wanted, stored):
        file = {stored + name: i for i, name in enumerate(self.LAYERS)}
        file |= {"transformer.blocks.0.weight": 8, "text.conv1.weight": 9, "logit_scale": 10}
        matched = match_names([wanted + name for name in self.LAYERS], file)
        assert matched == {wanted + name: stored + name for name in self.LAYERS}

    def test_wrapped_submodules(self):
        stored = {"visual._orig_mod.conv1.weight": 0, "logit_scale": 1}
        matched = match_names(["visual.conv1.weight", "logit_scale"], stored)
        assert matched["visual.conv1.weight"] == "visual._orig_mod.conv1.weight"
        both = {"module.a": 0, "a": 1}  # not a wrapper but two tensors
        assert match_names(both, both) == {"module.a": "module.a", "a": "a"}

    def test_keeps_its_own_prefix_among_twins(self):
        stored = {
            f"model.{tower}.{name}": 0 for tower in ("text", "visual") for name in self.LAYERS
        }
        matched = match_names([f"visual.{name}" for name in self.LAYERS], stored)
        assert set(matched.values()) == {f"model.visual.{name}" for name in self.LAYERS}

    def test_ambiguous(self):
        stored = {f"{model}.{name}": 0 for model in ("student", "teacher") for name in self.LAYERS}
        with pytest.raises(InputError, match=r"'student\.', 'teacher\.'.*prefix='student\.'"):
            match_names(self.LAYERS, stored)

    def test_one_name_keeps_its_meaning(self):
        with pytest.raises(InputError, match=r"visual\.proj"):
            match_names(["visual.proj"], {"text.proj": 0})

    def test_all_missing_names_are_told(self):
        stored = {"model.conv1.weight": 0, "other": 0}
        with pytest.raises(InputError) as fault:
            match_names(self.LAYERS, stored)
        assert "2 of 3 tensors are missing" in str(fault.value)
        assert "blocks.0.weight, blocks.1.weight" in str(fault.value)
        assert "with 'model.' in front of their names" in str(fault.value)

    def test_select_is_a_lazy_view(self, tmp_path):
        memory = {"model.a.w": torch.ones(2), "model.a.b": torch.zeros(1), "rest": torch.ones(1)}
        view = select(memory, ["a.b", "a.w"])
        assert isinstance(view, Checkpoint)
        assert list(view) == ["a.b", "a.w"]
        assert view["a.w"] is memory["model.a.w"]
        assert view.shape("a.w") == (2,)
        path = save_checkpoint(memory, tmp_path / "x.safetensors", metadata={"k": "v"})
        view = select(open_checkpoint(path), ["a.b", "a.w"])
        assert view.metadata["k"] == "v"
        assert_same(view, {"a.b": torch.zeros(1), "a.w": torch.ones(2)})
        with pytest.raises(InputError, match=r"x\.safetensors.*nothing"):
            select(open_checkpoint(path), ["nothing"])

    def test_statistics(self):
        assert is_statistic("bn.running_mean")
        assert is_statistic("num_batches_tracked")
        assert not is_statistic("bn.weight")
        assert not is_statistic("running_mean.weight")

    @pytest.mark.shared
    def test_zoo(self, shared):
        checkpoint = open_checkpoint(shared / "fixtures" / "zoo" / "pretrained.safetensors")
        tower = [n.removeprefix("model.visual.") for n in checkpoint if ".visual." in n]
        for wanted in (tower, [f"visual.{name}" for name in tower]):
            matched = match_names(wanted, checkpoint)
            assert all(stored.startswith("model.visual.") for stored in matched.values())
        with pytest.raises(InputError, match="missing"):
            match_names([*tower, "surplus.weight"], checkpoint)


def test_file_hash(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_hash(path) == wanted
    folder = file_hash(tmp_path)
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"abd")
    assert file_hash(path) != wanted
    assert file_hash(tmp_path) != folder
    with pytest.raises(InputError, match="missing"):
        file_hash(tmp_path / "missing")


def test_file_fingerprint(tmp_path):
    path, size, head = tmp_path / "x", 1 << 23, 1 << 20
    content = bytearray(os.urandom(size))

    def fingerprint():
        path.write_bytes(content)
        return file_fingerprint(path)

    first, folder = fingerprint(), file_fingerprint(tmp_path)
    assert first == file_fingerprint(path) != file_hash(path)
    for position in (0, head - 1, head, head + (size - head - (1 << 14)) // 2, size - 1):
        content[position] ^= 1
        assert fingerprint() != first
        assert file_fingerprint(tmp_path) != folder
        content[position] ^= 1
        assert fingerprint() == first
    for size in (0, 1, 1 << 14, head, head + 1, head + (1 << 20)):  # small ones are read whole
        content = bytearray(size)
        first = fingerprint()
        for position in {0, size // 2, size * 7 // 8, size - 1} if size else ():
            content[position] = 1
            assert fingerprint() != first
            content[position] = 0
        content.append(0)
        assert fingerprint() != first
    with pytest.raises(InputError, match="missing"):
        file_fingerprint(tmp_path / "missing")
