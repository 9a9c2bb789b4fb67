import copy
import gc
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lightning_merge.core.checkpoints.checkpoint import (
    as_checkpoint,
    open_checkpoint,
    save_checkpoint,
)
from lightning_merge.core.checkpoints.flat import BLOCK
from lightning_merge.core.errors import InputError

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


class TestOpenFiles:
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
