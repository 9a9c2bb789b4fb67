"""Thousands of damaged and hostile checkpoints: each is read as it says, or is an InputError.

The cases run in a process of their own, which may take little more memory than it has at the
start, and in which an audit hook tells whatever a payload could do. LIGHTNING_MERGE_FUZZ sets how
many cases run, LIGHTNING_MERGE_FUZZ_SEED where chance begins.
"""

import codecs
import json
import math
import os
import pickle
import random
import resource
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.checkpoints.flat import flat_bytes
from lightning_merge.core.errors import InputError, InputWarning

ROOM = 64 << 20  # bytes; the files have a few thousand
SECONDS = 5.0  # of one case, of the processor; the mean is below a millisecond
SIZES = [0, 1, 2, 3, 4, 7, 8, 64, 255, 2**16, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64 - 1]
MARK = "executed"


def mutated(content: bytes, others: list[bytes], choose: random.Random) -> bytes:
    """Content with a few faults: flipped, lost, inserted or foreign bytes, and false lengths."""
    data = bytearray(content)
    for _ in range(choose.choice([1, 1, 1, 2, 5, 20])):
        # where the structure is: near the beginning, or near the end of a zip file
        reach = choose.choice([16, 400, len(data)])
        at = choose.randrange(min(reach, len(data)) or 1)
        at = len(data) - 1 - at if choose.random() < 0.3 else at
        kind = choose.randrange(7)
        if kind == 0:
            data[at : at + 1] = bytes([choose.randrange(256)])
        elif kind == 1:
            data[at : at + 1] = bytes(
                byte ^ (1 << choose.randrange(8)) for byte in data[at : at + 1]
            )
        elif kind == 2:
            del data[at : at + choose.choice([1, 2, 8, 1000])]
        elif kind == 3:
            data[at:at] = choose.randbytes(choose.choice([1, 8, 100]))
        elif kind == 4:
            other = choose.choice(others)
            start = choose.randrange(len(other))
            data[at:at] = other[start : start + choose.randrange(200)]
        elif kind == 5:
            size = choose.choice([2, 4, 8])
            data[at : at + size] = (choose.choice(SIZES) % 256**size).to_bytes(size, "little")
        elif choose.random() < 0.3:
            del data[at:]
    return bytes(data)


def header(choose: random.Random) -> bytes:
    """A safetensors file whose header is well formed, and more or less true."""
    often = choose.choice([0.02, 0.1, 0.3])
    entries, end = [], 0
    for number in range(choose.randrange(1, 5)):
        shape = [choose.choice([0, 1, 2, 3]) for _ in range(choose.randrange(4))]
        begin, end = end, end + 4 * math.prod(shape)
        entry: dict = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        name = f"t{number}"
        if choose.random() < often:
            entry["dtype"] = choose.choice(["F64", "BF16", "F4", "BOOL", "C64", None, [], "f32"])
        if choose.random() < often:
            side = choose.choice([*SIZES, -1, 1.0, True, None, "2", [1]])
            entry["shape"] = [side] * choose.choice([1, 2, 3, 100])
        if choose.random() < often:
            entry["data_offsets"][choose.randrange(2)] = choose.choice([*SIZES, -4, None, 0.0])
        if choose.random() < often:  # a gap, or an overlap
            shift = choose.choice([4, -4, 8])
            entry["data_offsets"] = [begin + shift, end + shift]
        if choose.random() < often / 3:
            entry.pop(choose.choice(list(entry)))
        if choose.random() < often:
            name = choose.choice(["t0", "__metadata__", "\ud800", ""])
        entries.append(f"{json.dumps(name)}:{json.dumps(entry)}")
    text = ("{" + ",".join(entries) + "}").encode()
    length = choose.choice([*SIZES, len(text) + end]) if choose.random() < often else len(text)
    end += choose.choice([1, -1, 4, -4]) if choose.random() < often else 0
    return length.to_bytes(8, "little") + text + bytes(max(0, end))


def index(choose: random.Random) -> bytes:
    """An index of shards that leads to the files, or anywhere."""
    files = ["s1.safetensors", "s1.safetensors", "s2.pt", "none", "../x", "/dev/zero", "", "\0"]
    names = ["0.weight", "0.bias", "1.weight", "x", "\ud800"]
    values = [*files, *files, None, 3, [], {}]
    content = {
        "metadata": choose.choice([{"total_size": 9}, {}, None, [], 3, {"a": {"b": "\ud800"}}]),
        "weight_map": {
            choose.choice(names): choose.choice(values) if choose.random() < 0.5 else files[0]
            for _ in range(choose.randrange(4))
        },
    }
    if choose.random() < 0.1:
        content = choose.choice([[], 3, "x", {"weight_map": []}, {"weight_map": content}])
    return json.dumps(content).encode()


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


CALLS = [("os", "system"), ("posix", "system"), ("subprocess", "Popen"), ("builtins", "eval")]
CALLS += [("builtins", "exec"), ("builtins", "open"), ("builtins", "getattr"), ("pathlib", "Path")]
CALLS += [("torch._utils", "_rebuild_tensor_v2"), ("torch._tensor", "_rebuild_from_type_v2")]
CALLS += [("collections", "OrderedDict"), ("torch", "FloatStorage"), ("src", "Model"), ("a", "b")]


def payload(mark: str, choose: random.Random) -> bytes:
    """A piece of a pickle that names something, calls it, or has it called."""
    module, name = choose.choice(CALLS)
    argument = text(choose.choice([f"touch {mark}", f"open({mark!r}, 'w')", mark]))
    named = f"c{module}\n{name}\n".encode()
    if choose.random() < 0.3:
        named = text(module) + text(name) + b"\x93"
    return choose.choice(
        [
            named,
            named + argument + b"\x85R",
            named + b")R",
            named + argument + b"\x85\x81",
            named + argument + b"\x85}\x92",
            b"(" + named + argument + b"o",
            b"(" + argument + f"i{module}\n{name}\n".encode(),
            named + argument + b"b",
            named + argument + b"\x85Q",
        ]
    )


def tensor_in_pickle(choose: random.Random) -> bytes:
    """The opcodes of a tensor, mostly true."""
    true = choose.random() < 0.8
    count = choose.choice([b"K\x00", b"J\xff\xff\xff\xff", b"\x8a\x08" + bytes(7) + b"\x7f"])
    storage = b"((" + text("storage") + b"ctorch\nFloatStorage\n" + text(choose.choice("01"))
    storage += text("cpu") + (b"K\x04" if true else count) + b"tQ"
    offset = choose.choice([b"K\x00", b"K\x01", b"J\xff\xff\xff\xff"])
    sizes = [b")", b"K\x02\x85", b"K\x02K\x02\x86", b"K\x05\x85", b"J\xff\xff\xff\x7f\x85", b"N"]
    size, stride = choose.choice(sizes), choose.choice(sizes)
    honest = choose.choice([b"))", b"K\x02\x85K\x01\x85", b"K\x02K\x02\x86K\x01K\x02\x86"])
    place = b"K\x00" + honest if true else offset + size + stride
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + storage + place + b"\x89}tR"


def key(number: int) -> bytes:
    """The opcodes of a key that is no text: a number, bytes, a tuple or an object."""
    byte = bytes([number])
    keys = [b"K" + byte, b"C\x01" + byte, b"K" + byte + b"K\x07\x86", b"N", b"K\x01\x85\x85"]
    return [*keys, b"csrc\nA\n)R"][number % 6]


def held(tensor: bytes) -> list[bytes]:
    """The opcodes of containers of a tensor, and of one that holds itself."""
    pair = text("n") + tensor + b"\x86"
    containers = [b"(" + tensor + tensor + b"l", tensor + b"\x85", b"]" + pair + b"a"]
    optimizer = b"}(" + text("state") + b"}K\x00" + tensor + b"s" + text("param_groups") + b"]u"
    attributes = b"csrc\nA\n)\x81}" + text("x") + tensor + b"sb"
    return [*containers, optimizer, attributes, b"]q\x05h\x05a", b"(" + pair + b"\x90"]


def program(mark: str, choose: random.Random) -> bytes:
    """A pickle of random opcodes, with tensors and payloads among them."""
    tensor = tensor_in_pickle(choose)
    large = [b"\x8e", b"\x8d", b"\x96"]  # bytes, text and bytearray of any length
    pieces = [
        *(tensor, tensor, payload(mark, choose), payload(mark, choose)),
        *(b"}", b"]", b")", b"(", b"N", b"\x88", b"0", b"1", b"2", b"t", b"d", b"l", b"\x90"),
        *(b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u", b"b", b"R", b"o", b"\x91", b"\x94"),
        *(b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"r\xff\xff\xff\xff", b"p7\n", b"g7\n"),
        *(text("a"), text("state_dict"), text("_parameters"), text("_modules"), text("\u0130")),
        *(b"K\x07", b"M\xff\xff", b"I9\n", b"L99999L\n", b"F1e999\n", b"G" + bytes(8), b"Pk\n"),
        *(b"\x8b\xff\xff\xff\x7f", b"T\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"\x8a\xff"),
        b"\x82\x01",
        *(choose.choice(large) + choose.choice(SIZES).to_bytes(8, "little") for _ in range(2)),
        b"\x95" + choose.choice(SIZES).to_bytes(8, "little"),
        b"\x80\x04",
    ]
    body = b"".join(choose.choice(pieces) for _ in range(choose.randrange(40)))
    if choose.random() < 0.5:  # so that more of them come to an end
        body = b"}(" + b"".join(
            choose.choice([text(f"k{number}"), key(number)])
            + choose.choice([*[tensor] * 3, *held(tensor), b"}", payload(mark, choose), body])
            for number in range(choose.randrange(5))
        )
        body += b"u"
    return b"\x80\x02" + body + b"."


def torch_file(content: bytes, path: Path, choose: random.Random) -> None:
    """A file of torch.save with any pickle in it, in either format."""
    if choose.random() < 0.5:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", content)
            archive.writestr("x/data/0", bytes(16))
            archive.writestr("x/data/1", bytes(choose.randrange(20)))
        return
    keys = choose.choice([["0"], ["1"], ["0", "1"], [], "0", ["2"]])
    start = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001)]
    start += [pickle.dumps({"little_endian": True}, 2), content, pickle.dumps(keys, 2)]
    values = choose.choice([*SIZES[:9], 2**63]).to_bytes(8, "little") + bytes(16)
    path.write_bytes(b"".join(start) + (4).to_bytes(8, "little") + bytes(16) + values)


def honest_files(folder: Path) -> list[bytes]:
    """One checkpoint of every kind."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    state = dict(model.state_dict())
    state |= {"view": torch.arange(12.0).view(3, 4).T, "half": torch.ones(3).half()}
    old = {"_use_new_zipfile_serialization": False}
    save_checkpoint(state, folder / "0", metadata={"method": "Ties"})
    torch.save(state, folder / "1", pickle_protocol=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # legacy files want sources
        torch.save(model, folder / "2")
        torch.save(model, folder / "3", **old)
        torch.save({"state_dict": state, "epoch": 3}, folder / "4", **old)
    layers = {
        0: (state["view"], [state["half"]]),
        "pairs": [("a", torch.ones(2))],
        b"b": {(1, 2): 3},
    }
    torch.save(layers, folder / "5")
    files = [(folder / str(number)).read_bytes() for number in range(6)]
    (folder / "s1.safetensors").write_bytes(files[0])
    (folder / "s2.pt").write_bytes(files[1])
    return files


def write_case(kind: str, files: list[bytes], folder: Path, choose: random.Random) -> Path:
    path = folder / {"index": "case.index.json", "header": "case.safetensors"}.get(kind, "case")
    if kind == "mutated":
        path.write_bytes(mutated(choose.choice(files), files, choose))
    elif kind == "header":
        path.write_bytes(header(choose))
    elif kind == "index":
        content = index(choose)
        path.write_bytes(mutated(content, files, choose) if choose.random() < 0.3 else content)
    else:
        content = program(str(folder / MARK), choose)
        torch_file(content, path, choose)
        if choose.random() < 0.1:
            path.write_bytes(mutated(path.read_bytes(), files, choose))
    return path


def check(path: Path, choose: random.Random) -> str:
    """Read all of a checkpoint in both ways; the message if it cannot be read, or nothing."""
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint:
            tensor = checkpoint[name]
            assert tensor.shape == checkpoint.shape(name)
            assert tensor.dtype == checkpoint.dtype(name)
            assert tensor.numel() * tensor.dtype.itemsize <= path.stat().st_size + 2000  # shards
            start = choose.randrange(tensor.numel() + 1)
            run = tensor.reshape(-1)[start:]
            out = torch.empty(tensor.numel() - start, dtype=tensor.dtype)
            checkpoint.read_into(name, start, out)
            assert flat_bytes(out) == flat_bytes(run.contiguous())
        checkpoint.ties()
        checkpoint.check_unchanged()
    except InputError as fault:
        message = str(fault)
        message.encode()  # can be printed
        assert str(path.parent) in message, message
        causes = f"{message} {fault.__cause__!r}"
        assert "MemoryError" not in causes, causes
        assert "can't allocate memory" not in causes, causes
        return message
    return ""


def agrees(path: Path, message: str) -> bool:
    """Whether the library of safetensors' authors takes the same files, but for what we refuse."""
    try:
        with safe_open(path, "pt") as file:
            theirs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception:
        return bool(message)
    if message:
        return any(text in message for text in ("given twice", "torch has no type", "impossible"))
    ours = open_checkpoint(path)
    same = [flat_bytes(ours[name]) == flat_bytes(theirs[name]) for name in theirs]
    return set(ours) == set(theirs) and all(same)


class Watch:
    """Names the events that reading must not cause: running, importing or opening things."""

    def __init__(self, folder: Path) -> None:
        self.events: list[str] = []
        self.active = False
        self.folder = os.fspath(folder)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if not self.active:
            return
        known = event == "open" and (type(args[0]) is int or str(args[0]).startswith(self.folder))
        if not known and event != "builtins.id":  # which tells objects apart
            self.events.append(f"{event} {args!r}"[:200])


def limit_memory() -> None:
    """From here on, the process may have ROOM more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(folder: Path, count: int, seed: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", InputWarning)  # of what is left out
    files = honest_files(folder)
    for number in range(len(files)):
        assert not check(folder / str(number), random.Random(0))
    for encoding in ("cp437", "raw-unicode-escape"):  # which the readers import when needed
        codecs.lookup(encoding)
    watch = Watch(folder)
    limit_memory()
    good, slowest = {"mutated": 0, "header": 0, "index": 0, "program": 0}, 0.0
    for case in range(count):
        choose = random.Random(f"{seed}.{case}")
        kind = choose.choice(["mutated", "mutated", "header", "index", "program", "program"])
        path = write_case(kind, files, folder, choose)
        started = time.process_time()
        watch.active = True
        try:
            message = check(path, choose)
        except BaseException as fault:
            raise AssertionError(f"case {case} of seed {seed} ({kind})") from fault
        finally:
            watch.active = False
        seconds = time.process_time() - started
        slowest = max(slowest, seconds)
        good[kind] += not message
        assert kind != "header" or agrees(path, message), f"case {case} of seed {seed}: {message}"
        assert not watch.events, f"case {case} of seed {seed}: {watch.events}"
        assert seconds < SECONDS, f"case {case} of seed {seed} takes {seconds:.1f} s"
        assert not (folder / MARK).exists(), f"case {case} of seed {seed} was executed"
    print(json.dumps({"good": good, "slowest": slowest}))


def test_thousands_of_damaged_and_hostile_files(tmp_path):
    count = int(os.environ.get("LIGHTNING_MERGE_FUZZ", "2000"))
    seed = int(os.environ.get("LIGHTNING_MERGE_FUZZ_SEED", "0"))
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path), str(count), str(seed)],
        cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    good = json.loads(done.stdout)["good"]
    if count >= 1000:  # the cases reach beyond the first check of each reader
        assert all(number > count // 200 for number in good.values()), good


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
