import json
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_merge.core.checkpoints.checkpoint import (
    Checkpoint,
    match_names,
    open_checkpoint,
    save_checkpoint,
    select,
)
from lightning_merge.core.checkpoints.files import atomic_write
from lightning_merge.core.checkpoints.names import is_statistic
from lightning_merge.core.errors import InputError


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

    def test_pipes_do_not_block(self, tmp_path):
        for name in ("x.safetensors", "x.json", "x"):
            os.mkfifo(tmp_path / name)
            with pytest.raises(InputError, match="not a regular file"):
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
