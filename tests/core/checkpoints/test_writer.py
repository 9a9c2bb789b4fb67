import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.checkpoints.flat import BLOCK
from lightning_merge.core.checkpoints.writer import CheckpointWriter
from lightning_merge.core.errors import InputError

INDEX = "model.safetensors.index.json"
SHARDED = pytest.mark.parametrize("shard_size", [None, 300], ids=["file", "shards"])


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "half": torch.randn(7, generator=generator).half(),
        "large": torch.randn(9, 20, generator=generator),
        "count": torch.tensor(3),
        "empty": torch.empty(0, 2),
        "mask": torch.tensor([True, False, True]),
        "small": torch.randn(4, 5, generator=generator).bfloat16(),
        "spectrum": torch.randn(6, generator=generator, dtype=torch.complex64),
    }


def layout_of(tensors):
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def place(folder, shard_size):
    return folder / "merged" / ("x.safetensors" if shard_size is None else "folder")


def files_in(path):
    """Content of all files under a path, or of the file, by name."""
    found = path.rglob("*") if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in found if file.is_file()}


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def old_checkpoint(path, shard_size):
    """A checkpoint to be replaced."""
    save_checkpoint({"old": torch.arange(100.0)}, path, max_shard_size=shard_size)
    return files_in(path)


class TestFormat:
    def test_the_library_reads_it(self, tensors, tmp_path):
        path = save_checkpoint(tensors, tmp_path / "x.safetensors", metadata={"a": "b"})
        assert_same(load_file(path), tensors)
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        assert length % 8 == 0
        assert header.pop("__metadata__") == {"format": "pt", "a": "b"}
        widths = [tensors[name].dtype.itemsize for name in header]
        assert widths == sorted(widths, reverse=True)
        for name, entry in header.items():
            assert (8 + length + entry["data_offsets"][0]) % tensors[name].dtype.itemsize == 0
        assert content[8 + length :] == b"".join(
            bytes(tensors[name].reshape(-1).view(torch.uint8).tolist()) for name in header
        )

    def test_shards_are_those_of_the_hub(self, tensors, tmp_path):
        metadata = {"method": "Ties"}
        save_checkpoint(tensors, tmp_path, metadata=metadata, max_shard_size=300)
        index = json.loads((tmp_path / INDEX).read_text())
        total = sum(t.numel() * t.dtype.itemsize for t in tensors.values())
        assert index["metadata"] == {"method": "Ties", "total_size": total}
        shards = sorted(set(index["weight_map"].values()))
        assert sorted(os.listdir(tmp_path)) == [*shards, INDEX]
        for number, shard in enumerate(shards, 1):
            assert shard.endswith(f"-{number:05d}-of-{len(shards):05d}.safetensors")
            with safe_open(tmp_path / shard, "pt") as file:
                assert file.metadata() == {"format": "pt", **metadata}
                part = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            assert_same(part, {n: tensors[n] for n, f in index["weight_map"].items() if f == shard})
            size = sum(t.numel() * t.dtype.itemsize for t in part.values())
            assert size <= 300 or list(part) == ["large"]
        found = open_checkpoint(tmp_path)
        assert_same(found, tensors)
        assert found.metadata == {"method": "Ties", "total_size": str(total)}

    def test_transformers_loads_shards(self, tmp_path):
        transformers = pytest.importorskip("transformers")
        config = transformers.CLIPVisionConfig(
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
        )
        model = transformers.CLIPVisionModel(config)
        config.save_pretrained(tmp_path)
        save_checkpoint(model.state_dict(), tmp_path, max_shard_size=2000)
        loaded = transformers.CLIPVisionModel.from_pretrained(tmp_path)
        assert_same(loaded.state_dict(), model.state_dict())


class TestPieces:
    @SHARDED
    def test_any_order_by_threads(self, shard_size, tensors, tmp_path):
        path, whole = place(tmp_path, shard_size), place(tmp_path / "whole", shard_size)
        save_checkpoint(tensors, whole, max_shard_size=shard_size)
        pieces = [
            (name, start, min(start + 7, tensor.numel()))
            for name, tensor in tensors.items()
            for start in range(0, tensor.numel(), 7)
        ]
        layout = layout_of(tensors)
        with (
            CheckpointWriter(path, layout, max_shard_size=shard_size) as writer,
            ThreadPoolExecutor(4) as pool,
        ):
            writes = [
                pool.submit(writer.write, name, a, tensors[name].view(-1)[a:b])
                for name, a, b in reversed(pieces)
            ]
            for write in writes:
                write.result()
        assert sorted(files_in(path).values())[-1:] == sorted(files_in(whole).values())[-1:]
        assert_same(open_checkpoint(path), tensors)

    def test_values_are_converted_in_blocks(self, tmp_path):
        values = torch.randn(3, BLOCK // 2 + 1, dtype=torch.float64)
        complex_values = torch.randn(5, dtype=torch.complex64)
        layout = {
            "a": (torch.bfloat16, (BLOCK // 2 + 1, 3)),
            "b": (torch.complex64, (5,)),
            "c": (torch.int8, (4,)),
        }
        with CheckpointWriter(tmp_path / "x.safetensors", layout) as writer:
            writer.write("a", 0, values.T.requires_grad_())
            writer.write("b", 0, complex_values.conj())
            writer.write("c", 0, torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
        found = load_file(tmp_path / "x.safetensors")
        assert torch.equal(found["a"], values.T.bfloat16())
        assert torch.equal(found["b"], complex_values.conj())
        assert found["c"].tolist() == [1, -2, 3, 4]

    @pytest.mark.gpu
    def test_values_on_a_gpu(self, tmp_path):
        values = torch.randn(3, BLOCK // 2 + 1, device="cuda")
        path = save_checkpoint({"a": values.T, "b": values.half()}, tmp_path / "x.safetensors")
        assert_same(load_file(path), {"a": values.T.cpu(), "b": values.half().cpu()})

    @pytest.mark.parametrize(
        "pieces",
        [
            [],
            [(0, 3)],
            [(0, 2), (3, 4)],
            [(0, 4), (0, 4)],
            [(0, 3), (2, 4)],
            [(0, 5)],
            [(-1, 3)],
        ],
    )
    def test_each_element_exactly_once(self, pieces, tmp_path):
        path = tmp_path / "x.safetensors"
        old = old_checkpoint(path, None)
        writer = CheckpointWriter(path, {"name": (torch.float32, (2, 2))})
        with pytest.raises(RuntimeError, match="name"), writer:  # noqa: PT012
            for start, stop in pieces:
                writer.write("name", start, torch.ones(stop - start))
        assert files_in(tmp_path) == old


class TestFailure:
    @SHARDED
    @pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
    def test_an_exception_leaves_the_old_checkpoint(self, fault, shard_size, tensors, tmp_path):
        path = place(tmp_path, shard_size)
        old = old_checkpoint(path, shard_size)
        writer = CheckpointWriter(path, layout_of(tensors), max_shard_size=shard_size)
        with pytest.raises(fault), writer:  # noqa: PT012
            writer.write("large", 0, tensors["large"])
            raise fault
        assert files_in(path) == old
        assert files_in(tmp_path) == old

    @SHARDED
    def test_refuses_to_overwrite(self, shard_size, tensors, tmp_path):
        path = place(tmp_path, shard_size)
        old = old_checkpoint(path, shard_size)
        with pytest.raises(InputError, match="exists"):
            save_checkpoint(tensors, path, overwrite=False, max_shard_size=shard_size)
        assert files_in(tmp_path) == old

    @pytest.mark.parametrize(
        ("layout", "options", "message"),
        [
            ({}, {}, "no tensors"),
            ({"a": (torch.complex128, (1,))}, {}, "complex128"),
            ({"__metadata__": (torch.int8, (1,))}, {}, "reserved"),
            ({"\ud800": (torch.int8, (1,))}, {}, "not text"),
            ({"a": (torch.int8, (1,))}, {"metadata": {"seed": 1}}, "seed"),
            ({"a": (torch.int8, (1,))}, {"max_shard_size": 0}, "max_shard_size=0"),
        ],
    )
    def test_bad_input(self, layout, options, message, tmp_path):
        with pytest.raises(InputError, match=message):
            CheckpointWriter(tmp_path / "x", layout, **options)
        assert list(tmp_path.iterdir()) == []

    @SHARDED
    def test_no_room_is_told_before_the_work(self, shard_size, tmp_path):
        path = place(tmp_path, shard_size)
        layout = {"a": (torch.float32, (10,)), "b": (torch.float32, (2**20, 2**30))}
        with (
            pytest.raises(InputError, match=r"4503599\.627 GB are needed.*: No space left"),
            CheckpointWriter(path, layout, max_shard_size=shard_size),
        ):
            pytest.fail("must not begin")
        assert files_in(tmp_path) == {}

    @SHARDED
    @pytest.mark.parametrize("early", [True, False])
    def test_a_disk_that_is_full(self, early, shard_size, tensors, tmp_path):
        path = place(tmp_path, shard_size)
        old = old_checkpoint(path, shard_size)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        writer = CheckpointWriter(path, layout_of(tensors), max_shard_size=shard_size)
        try:
            if early:
                resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
            with pytest.raises(InputError, match=r"cannot be written.*large"), writer:  # noqa: PT012
                assert not early
                resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
                writer.write("large", 0, tensors["large"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert files_in(tmp_path) == old


class TestStaleFiles:
    def test_what_an_index_named_goes_and_the_rest_stays(self, tensors, tmp_path):
        foreign = {"config.json": b"{}", "model-00001-of-00002.safetensors": b"not named"}
        foreign |= {"pytorch_model.bin": b"", "model-0.safetensors": b"", ".hidden": b""}
        for name, content in foreign.items():
            (tmp_path / name).write_bytes(content)
        save_checkpoint({"old": torch.ones(1)}, tmp_path / "model.safetensors")
        for part in ({"new": torch.ones(3)}, tensors):
            save_checkpoint(part, tmp_path, max_shard_size=300)
            found = files_in(tmp_path)
            shards = json.loads(found.pop(INDEX))["weight_map"].values()
            assert {name: found[name] for name in foreign} == foreign
            assert set(found) - set(foreign) == set(shards)
            assert_same(open_checkpoint(tmp_path), part)

    @pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {"a": 3}}'])
    def test_a_damaged_index_is_replaced(self, index, tensors, tmp_path):
        (tmp_path / INDEX).write_text(index)
        save_checkpoint(tensors, tmp_path, max_shard_size=300)
        assert_same(open_checkpoint(tmp_path), tensors)

    def test_an_index_removes_nothing_elsewhere(self, tensors, tmp_path):
        (tmp_path / "precious.safetensors").touch()
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "config.json").touch()
        names = ["../precious.safetensors", str(tmp_path / "precious.safetensors"), "config.json"]
        (folder / INDEX).write_text(json.dumps({"weight_map": dict(enumerate(names))}))
        save_checkpoint(tensors, folder, max_shard_size=300)
        assert (tmp_path / "precious.safetensors").exists()
        assert (folder / "config.json").exists()

    def test_a_file_that_an_index_would_hide_is_refused(self, tensors, tmp_path):
        save_checkpoint(tensors, tmp_path, max_shard_size=300)
        old = files_in(tmp_path)
        with pytest.raises(InputError, match="remove it"):
            save_checkpoint(tensors, tmp_path / "model.safetensors")
        assert files_in(tmp_path) == old

    def test_shards_without_an_index_are_not_read(self, tensors, tmp_path):
        save_checkpoint({"a": torch.ones(1)}, tmp_path, max_shard_size=300)
        (tmp_path / INDEX).unlink()
        with pytest.raises(InputError, match="without the index"):
            open_checkpoint(tmp_path)

    def test_files_of_another_writer_stay(self, tensors, tmp_path):
        path = tmp_path / "x.safetensors"
        with CheckpointWriter(path, {"a": (torch.int8, (1,))}) as writer:
            save_checkpoint(tensors, path)
            assert_same(open_checkpoint(path), tensors)
            writer.write("a", 0, torch.ones(1))
        assert_same(open_checkpoint(path), {"a": torch.ones(1, dtype=torch.int8)})
        assert os.listdir(tmp_path) == ["x.safetensors"]


KILL = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint

torch.set_num_threads(1)
choose = random.Random(0)
versions = [{name: torch.full((1 << 18,), i + 0.5) for name in ("a", "b", f"c{i}")} for i in (0, 1)]

def save(i):
    save_checkpoint(versions[i], path, max_shard_size=shard_size)

def which():
    found = open_checkpoint(path)
    (i,) = (i for i in (0, 1) if set(found) == set(versions[i]))
    assert all(torch.equal(found[name], tensor) for name, tensor in versions[i].items())
    return i

def until_step(kill_at):
    steps = iter(range(kill_at))
    def hook(event, args):
        if event in ("open", "os.rename", "os.remove", "os.listdir", "os.scandir"):
            if next(steps, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    save(1)

def forever():
    while True:
        save(1)
        save(0)

def in_child(function, *arguments, seconds=None):
    pid = os.fork()
    if not pid:
        function(*arguments)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]

for path, shard_size in ((Path(sys.argv[1]), None), (Path(sys.argv[2]), 1_500_000)):
    save(0)
    for _ in range(12):
        assert in_child(forever, seconds=choose.uniform(0, 0.04)) == signal.SIGKILL
        which()
    seen = []
    for step in range(100):
        save(0)
        if not in_child(until_step, step):
            break
        seen.append(which())
    assert seen == sorted(seen) and len(seen) > 5 and set(seen) == {0, 1}, seen
    save(0)
"""


def test_kill_leaves_the_old_or_the_new_checkpoint(tmp_path):
    """Killed at any time, and before each step that makes, renames or removes a file."""
    paths = [tmp_path / "file" / "x.safetensors", tmp_path / "shards"]
    done = subprocess.run(
        [sys.executable, "-c", KILL, *paths],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path / "file") == ["x.safetensors"]  # nothing is left behind
    assert len(os.listdir(tmp_path / "shards")) == 4
