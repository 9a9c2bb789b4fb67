"""Files and folders without a readable checkpoint: what they are, and the remedy for each."""

import re
from collections.abc import Collection
from pathlib import Path

_AGAIN = "load it where it was made and save its state dict with torch.save or safetensors"
_ARRAYS = "save tensors by name with torch.save or safetensors"
_ORIGIN = "give the checkpoint that it was made from"
_UNPACK = "unpack it and give the checkpoint inside"
_TENSORFLOW = "convert it with transformers 4, from_pretrained(folder, from_tf=True)"
_FLAX = "convert it with transformers 4, from_pretrained(folder, from_flax=True)"
_MAGIC = (
    (0, b"version https://git-lfs", "a pointer of git-lfs, not the file", "run 'git lfs pull'"),
    (0, b"GGUF", "a GGUF file, made for llama.cpp", _ORIGIN),
    (0, b"lmgg", "a GGML file, made for llama.cpp", _ORIGIN),
    (0, b"tjgg", "a GGML file, made for llama.cpp", _ORIGIN),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write", _TENSORFLOW),
    (4, b"TFL3", "a TensorFlow Lite model", _ORIGIN),
    (0, b"\x93NUMPY", "a NumPy array", _ARRAYS),
    (0, b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (0, b"BZh", "compressed with bzip2", _UNPACK),
    (0, b"\xfd7zXZ\x00", "compressed with xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive, or a file of torch before 0.2", f"{_UNPACK}, or {_AGAIN}"),
)
_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml|head|!--)", re.IGNORECASE)
_SUFFIXES = {
    ".onnx": ("an ONNX graph", _ORIGIN),
    ".msgpack": ("a Flax checkpoint", _FLAX),
    ".h5": ("a TensorFlow checkpoint", _TENSORFLOW),
    ".keras": ("a Keras checkpoint", _TENSORFLOW),
    ".npz": ("an archive of NumPy arrays", _ARRAYS),
    ".gguf": ("a GGUF file, made for llama.cpp", _ORIGIN),
    ".distcp": (
        "part of a distributed checkpoint",
        "run python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt",
    ),
    ".pb": ("a TensorFlow graph", _TENSORFLOW),
    ".tflite": ("a TensorFlow Lite model", _ORIGIN),
    ".engine": ("a TensorRT engine", _ORIGIN),
    ".mlmodel": ("a Core ML model", _ORIGIN),
}
START = 512  # bytes that identify a file


def describe(start: bytes, path: Path) -> str:
    """Return what an unreadable file is and what to do about it; empty if that is unknown.

    Args:
        start: Its first bytes, up to `START`.
        path: Its path, whose suffix decides if the bytes do not.

    Examples:
        >>> describe(b"GGUF", Path("model.bin"))
        'is a GGUF file, made for llama.cpp: give the checkpoint that it was made from'
    """
    for offset, magic, kind, remedy in _MAGIC:
        if start[offset : offset + len(magic)] == magic:
            return f"is {kind}: {remedy}"
    if _PAGE.match(start):
        return "is a web page, not a checkpoint: download the file itself, logged in if necessary"
    return _by_suffix(path)


def _by_suffix(path: Path) -> str:
    kind, remedy = _SUFFIXES.get(path.suffix.lower(), ("", ""))
    return f"is {kind}: {remedy}" if kind else ""


def describe_archive(members: Collection[str]) -> str:
    """Return what a zip archive is that torch.save did not write, and what to do about it.

    Args:
        members: Names of the files in it.

    Examples:
        >>> describe_archive(["weights.npy"])
        'is an archive of NumPy arrays: save tensors by name with torch.save or safetensors'
    """
    if any(name.endswith(".npy") for name in members):
        return f"is an archive of NumPy arrays: {_ARRAYS}"
    if any(name.endswith("model.weights.h5") for name in members):
        return f"is a Keras checkpoint: {_TENSORFLOW}"
    if any(name.endswith("models/model.json") for name in members):
        return f"is a torch.export program: {_AGAIN}"
    return f"is a zip archive, but not one that torch.save wrote: {_UNPACK}"


def describe_folder(folder: Path) -> str:
    """Return what a folder without a checkpoint holds and what to do about it; empty if unknown.

    Examples:
        >>> Path("tuned").mkdir()
        >>> Path("tuned/flax_model.msgpack").touch()
        >>> describe_folder(Path("tuned"))
        'tuned holds no readable checkpoint: flax_model.msgpack is a Flax checkpoint: ...'
    """
    names = sorted(file.name for file in folder.iterdir())
    if any(name.endswith(".distcp") for name in names):
        return f"{folder} is a distributed checkpoint: " + _SUFFIXES[".distcp"][1]
    if "zero_to_fp32.py" in names:
        return f"{folder} is a DeepSpeed checkpoint: run python zero_to_fp32.py . FILE.pt in it"
    for name in names:
        if description := _by_suffix(folder / name):
            return f"{folder} holds no readable checkpoint: {name} {description}"
    return ""
