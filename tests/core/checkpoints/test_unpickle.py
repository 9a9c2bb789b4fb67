import builtins
import collections
import enum
import os
import pathlib
import pickle
import subprocess
import sys
import types
import warnings
import zipfile
from io import BytesIO

import pytest
import torch
from torch import nn

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.checkpoints.pickle_machine import OtherKey, Record, Symbol, read_pickle
from lightning_merge.core.errors import InputError

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(value, path, *, zipped=True, **options):
    with warnings.catch_warnings():  # the legacy writer tells of classes without source
        warnings.simplefilter("ignore")
        torch.save(value, path, _use_new_zipfile_serialization=zipped, **options)
    return path


def load(path):
    return dict(open_checkpoint(path).items())


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


class Call:
    """Pickles as a call of `function`, as exploits do."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


@pytest.fixture
def gone():
    """A module whose class exists only while it is pickled, as for code that was not published."""
    module = types.ModuleType("src_modeling")

    class Mode(enum.Enum):
        BICUBIC = "bicubic"

    class ImageEncoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.GELU())
            self.register_buffer("mask", torch.ones(2, 2).half(), persistent=False)
            self.register_buffer("steps", torch.tensor(5))
            self.register_parameter("nothing", None)
            self.scale = nn.Parameter(torch.randn(()))
            self.preprocess = [Mode.BICUBIC, pathlib.PurePosixPath("/cache"), {1, 2}]
            self.device = torch.device("cpu")
            self.model[0].weight.data = torch.randn(4, 3).T  # not contiguous

    for kind in (Mode, ImageEncoder):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    sys.modules[module.__name__] = module
    yield ImageEncoder()
    sys.modules.pop(module.__name__, None)


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_module_of_a_lost_class(gone, zipped, protocol, tmp_path):
    path = save(gone, tmp_path / "encoder.pt", zipped=zipped, pickle_protocol=protocol)
    del sys.modules["src_modeling"]
    before = set(sys.modules)
    found = load(path)
    assert_same(found, gone.state_dict())
    assert set(sys.modules) == before
    assert_same(open_checkpoint(path), gone.state_dict())


@FORMATS
def test_dtypes_views_and_ties(zipped, tmp_path):
    whole = torch.arange(24.0)
    state = {
        "odd": torch.ones(3, dtype=torch.int8),  # leaves what follows it unaligned
        "whole": whole,
        "again": whole,
        "part": whole[3:15].reshape(3, 4).T,
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "bf16": torch.randn(5).bfloat16(),
        "f8": torch.randn(4).to(torch.float8_e4m3fn),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(2, dtype=torch.complex64),
        "u16": torch.tensor([1, 65535], dtype=torch.uint16),
        "parameter": nn.Parameter(torch.randn(2)),
    }
    path = save(state, tmp_path / "x.pt", zipped=zipped)
    found = open_checkpoint(path)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype == found.dtype(name)
        assert found.shape(name) == tensor.shape
        wide = torch.complex128  # equal() knows neither float8 nor uint16
        assert torch.equal(found[name].to(wide), tensor.detach().to(wide))
    assert found.ties() == [("whole", "again")]


@FORMATS
@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda s: s, ""),
        (lambda s: {"state_dict": s, "optimizer": {"state": {0: {"m": torch.ones(1)}}}}, ""),
        (lambda s: {"state_dict": s, "callbacks": {"C": {"best": torch.ones(1)}}}, ""),
        (lambda s: {"model": s, "epoch": 3, "args": types.SimpleNamespace(lr=1)}, ""),
        (lambda s: {"student": s, "teacher": s}, "student."),
        (lambda s: {"model": nn.ModuleDict({"a": nn.Linear(2, 2)}).requires_grad_(False)}, "a."),
        (lambda s: collections.defaultdict(list, s), ""),
        (lambda s: nn.DataParallel(nn.Linear(2, 2)), "module."),
    ],
)
def test_where_the_state_lies(wrap, prefix, zipped, tmp_path):
    state = nn.Linear(2, 2).state_dict()
    found = load(save(wrap(state), tmp_path / "x.pt", zipped=zipped))
    assert [name for name in found if name.startswith(prefix)] == [prefix + n for n in state]


def test_torchscript(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(model), tmp_path / "ViT-B-32.pt")
    assert_same(load(tmp_path / "ViT-B-32.pt"), model.state_dict())


@FORMATS
@pytest.mark.parametrize(
    "payload",
    [
        lambda file: Call(os.system, f"touch {file}"),
        lambda file: Call(subprocess.Popen, ["touch", file]),
        lambda file: Call(builtins.eval, f"open({file!r}, 'w')"),
        lambda file: Call(builtins.exec, f"open({file!r}, 'w')"),
        lambda file: Call(builtins.getattr, Call(set), "add"),
        lambda file: Call(builtins.open, file, "w"),
        lambda file: Call(pathlib.Path.touch, pathlib.Path(file)),
        lambda file: Call(__import__, "antigravity"),
        lambda file: Call(torch.load, file),
        lambda file: Call(torch.hub.load, "owner/repository", "model"),
        lambda file: Call(torch.zeros, 10**12),
        lambda file: Call(bytearray.fromhex, "00"),
    ],
)
def test_payloads_are_refused_and_never_run(payload, zipped, tmp_path):
    mark = tmp_path / "executed"
    path = tmp_path / "x.pt"
    for content in (
        {"state_dict": {"a": torch.ones(2)}, "hook": payload(str(mark))},
        {"a": torch.ones(2), "b": [payload(str(mark))]},
    ):
        save(content, path, zipped=zipped)
        with pytest.raises(InputError, match=r"x\.pt asks to call .* is ever executed"):
            open_checkpoint(path)
        assert not mark.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"(S'touch %s'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch %s'\no.",  # OBJ
        b"cos\nsystem\n(S'touch %s'\ntR.",  # REDUCE
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x08touch %s\x85R.",  # STACK_GLOBAL
        b"(i__builtin__\neval\n.",
        b"csubprocess\nPopen\n(S'%s'\ntR.",
        b"ccollections\nOrderedDict\n(tR(cos\nsystem\n(S'touch %s'\ntRtR.",
        b"\x82\x01.",  # EXT1
        b"Pkey\n.",  # PERSID
    ],
)
def test_every_way_to_call(program, tmp_path):
    mark = tmp_path / "executed"
    path = tmp_path / "x"
    path.write_bytes(program.replace(b"%s", str(mark).encode()))
    with path.open("rb") as file, pytest.raises((InputError, ValueError)):
        read_pickle(file)
    assert not mark.exists()


def test_objects_are_inert(tmp_path):
    namespace = types.SimpleNamespace(call=os.system)  # named, not called
    path = tmp_path / "x"
    path.write_bytes(pickle.dumps([namespace, {"a": (1, None, True)}, 2**70, b"x", 1.5, "ü"], 2))
    with path.open("rb") as file:
        record, *rest = read_pickle(file)
    assert rest == [{"a": (1, None, True)}, 2**70, b"x", 1.5, "ü"]
    assert isinstance(record, Record)
    assert record.kind == Symbol("types", "SimpleNamespace")
    assert record.state["call"] == Symbol("posix", "system")


def quietly(make, *args):
    with warnings.catch_warnings():  # of what torch calls beta
        warnings.simplefilter("ignore")
        return make(*args)


def quantised(dtype):
    return quietly(torch.quantize_per_tensor, torch.ones(2), 0.1, 0, dtype)


@FORMATS
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2), "no named tensors"),
        ({}, "no named tensors"),
        ({"a": 1}, "no named tensors"),
        ({"a": torch.zeros(1).expand(10**9)}, "contiguous"),
        ({"a": torch.eye(3).to_sparse()}, "a sparse tensor: save it again after .to_dense"),
        ({"a": quietly(torch.eye(3).to_sparse_csr)}, "a sparse tensor"),
        ({"a": torch.ones(2, device="meta")}, "a tensor without values"),
        ({"a": quantised(torch.qint8)}, "quantised tensors: call dequantize"),
        ({"a": torch.ones(2), "b": [quantised(torch.quint8)]}, "quantised tensors"),
    ],
)
def test_content_that_is_no_checkpoint(value, message, zipped, tmp_path):
    path = save(value, tmp_path / "x.pt", zipped=zipped)
    with pytest.raises(InputError, match=message) as fault:
        load(path)
    assert str(path) in str(fault.value)


@FORMATS
def test_objects_within_themselves(zipped, tmp_path):
    loop: dict = {"a": torch.ones(1)}
    loop["loop"] = loop
    wide: dict = {"x": 1}
    for _ in range(60):
        wide = {"l": wide, "r": wide}
    deep: tuple = ()
    for _ in range(400):
        deep = (deep,)
    for value in (loop, {"b": torch.ones(1), "wide": wide}):
        with pytest.raises(InputError, match="more objects"):
            load(save(value, tmp_path / "x.pt", zipped=zipped))
    found = load(save({"a": torch.ones(1), "deep": {deep: 1}}, tmp_path / "x.pt", zipped=zipped))
    assert list(found) == ["a"]


def test_hashing_cannot_crash(tmp_path):
    depth = 10**5
    (tmp_path / "x").write_bytes(b"})" + b"\x85" * depth + b"Ns.")  # {((((...),),),): None}
    with (tmp_path / "x").open("rb") as file:
        assert [*map(type, read_pickle(file))] == [OtherKey]


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x04\x8c\x03\xed\xa0\x80\x8c\x01a\x93.",  # half a surrogate pair
        b"\x80\x04\x8c\x02os\x8c\x04\x1b[2J\x93.",  # clears the terminal
        b"\x80\x02" + b"}" * 6_000_000 + b".",  # 64 bytes of memory for each
        b"\x80\x04B\xff\xff\xff\x7f.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
    ids=["surrogate", "escape", "objects", "bytes", "text"],
)
def test_programs_that_are_refused(program):
    with pytest.raises((ValueError, OverflowError, MemoryError)):
        read_pickle(BytesIO(program))


def test_keys_that_are_slow_to_hash_are_not_hashed():
    keys = (2**62, -(2**62), (1, "a", None), 2**64, (2**64,), ((1,),), (1,) * 9)
    found = read_pickle(BytesIO(pickle.dumps({key: value for value, key in enumerate(keys)})))
    assert list(found.values()) == list(range(len(keys)))
    assert list(found)[:3] == list(keys[:3])
    assert [*map(type, list(found)[3:])] == [OtherKey] * 4


@FORMATS
def test_names_that_are_no_text(zipped, tmp_path):
    path = save({"a\ud800": torch.ones(2)}, tmp_path / "x.pt", zipped=zipped)
    with pytest.raises(InputError, match="is truncated or damaged") as fault:
        open_checkpoint(path)
    str(fault.value).encode()


@FORMATS
def test_parts_that_share_all_they_have_take_no_longer(zipped, tmp_path):
    """Without a bound, the time would grow with the product of parts and what they share."""
    barren = {str(i): {} for i in range(2000)}
    content = {f"part{i}": {"x": barren} for i in range(2000)}
    path = save({**content, "a": torch.ones(1)}, tmp_path / "x.pt", zipped=zipped)
    with pytest.raises(InputError, match="more objects"):
        open_checkpoint(path)


def rebuilt(tmp_path, shape, stride, offset=0, numel=4):
    """A zip checkpoint whose one tensor claims the given place in a storage of 4 floats."""
    path = save({"a": torch.arange(4.0)}, tmp_path / "good.pt")
    storage = pickle.dumps(("storage", torch.FloatStorage, "0", "cpu", numel), 2)[2:-1] + b"Q"
    sizes = [pickle.dumps(value, 2)[2:-1] for value in (offset, shape, stride, False)]
    program = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n("
    program += storage + b"".join(sizes) + b"}tRs."
    with zipfile.ZipFile(path) as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, program if name.endswith("data.pkl") else good.read(name))
    return tmp_path / "bad.pt"


def test_honest_claim(tmp_path):
    found = load(rebuilt(tmp_path, (1, 3), (3, 1), 1))
    assert torch.equal(found["a"], torch.tensor([[1.0, 2.0, 3.0]]))


@pytest.mark.parametrize(
    "claim",
    [
        {"shape": (5,), "stride": (1,)},
        {"shape": (4,), "stride": (1,), "offset": 1},
        {"shape": (2,), "stride": (4,)},
        {"shape": (2**40, 2**40), "stride": (0, 0)},
        {"shape": (0, 2**70), "stride": (1, 1)},
        {"shape": (0, 2**61, 2**61), "stride": (1, 1, 1)},
        {"shape": (-1,), "stride": (1,)},
        {"shape": (4,), "stride": (-1,)},
        {"shape": (4,), "stride": (1,), "offset": -1},
        {"shape": (4,), "stride": (1, 1)},
        {"shape": (4,), "stride": (1,), "numel": 5},
        {"shape": (4,), "stride": (1,), "numel": 2**60},
        {"shape": (True,), "stride": (1,)},
        {"shape": ("4",), "stride": (1,)},
        {"shape": (1,) * 65, "stride": (1,) * 65},
    ],
)
def test_false_claims(claim, tmp_path):
    with pytest.raises(InputError, match=r"bad\.pt is truncated or damaged"):
        load(rebuilt(tmp_path, **claim))


def test_foreign_archives(tmp_path):
    path = tmp_path / "x.pt"
    for mode in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        good = save({"a": torch.zeros(100)}, tmp_path / "good.pt")
        with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w", mode) as target:
            for name in source.namelist():
                target.writestr(name if mode else name.upper(), source.read(name))
        with pytest.raises(InputError, match=r"x\.pt is a (zip|compressed)"):
            load(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match=r"not one that torch\.save wrote"):
        load(path)
