"""Files and folders that hold no checkpoint which can be read, and what to do with each."""

import re
from collections.abc import Collection
from pathlib import Path

_AGAIN = "load it where it was made, and save its state dict with torch.save or safetensors"
_ARRAYS = "save tensors by name with torch.save or safetensors"
_ORIGIN = "give the checkpoint that it was made from"
_UNPACK = "unpack it, and give the checkpoint that is in it"
_TENSORFLOW = "convert it with transformers 4, from_pretrained(folder, from_tf=True)"
_FLAX = "convert it with transformers 4, from_pretrained(folder, from_flax=True)"
_MAGIC = (
    (0, b"version https://git-lfs", "a pointer of git-lfs, not the file", "run 'git lfs pull'"),
    (0, b"GGUF", "a GGUF file, made for llama.cpp", _ORIGIN),
    (0, b"lmgg", "a GGML file, made for llama.cpp", _ORIGIN),
    (0, b"tjgg", "a GGML file, made for llama.cpp", _ORIGIN),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write", _TENSORFLOW),
    (4, b"TFL3", "a model of TensorFlow Lite", _ORIGIN),
    (0, b"\x93NUMPY", "an array of NumPy", _ARRAYS),
    (0, b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (0, b"BZh", "compressed by bzip2", _UNPACK),
    (0, b"\xfd7zXZ\x00", "compressed by xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "an archive of 7-Zip", _UNPACK),
    (0, b"Rar!", "an archive of RAR", _UNPACK),
    (257, b"ustar", "a tar archive, or of torch before 0.2", f"{_UNPACK}, or {_AGAIN}"),
)
_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml|head|!--)", re.IGNORECASE)
_SUFFIXES = {
    ".onnx": ("an ONNX graph", _ORIGIN),
    ".msgpack": ("a checkpoint of Flax", _FLAX),
    ".h5": ("a checkpoint of TensorFlow", _TENSORFLOW),
    ".keras": ("a checkpoint of Keras", _TENSORFLOW),
    ".npz": ("an archive of NumPy arrays", _ARRAYS),
    ".gguf": ("a GGUF file, made for llama.cpp", _ORIGIN),
    ".distcp": (
        "a part of a distributed checkpoint",
        "run python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt",
    ),
    ".pb": ("a graph of TensorFlow", _TENSORFLOW),
    ".tflite": ("a model of TensorFlow Lite", _ORIGIN),
    ".engine": ("an engine of TensorRT", _ORIGIN),
    ".mlmodel": ("a model of Core ML", _ORIGIN),
}
START = 512  # bytes that tell


def describe(start: bytes, path: Path) -> str:
    """Return what a file is that cannot be read, and what to do; nothing if that is not known.

    Args:
        start: Its first bytes, `START` of them if there are as many.
        path: Its name, which tells where no byte does.
    """
    for offset, magic, kind, remedy in _MAGIC:
        if start[offset : offset + len(magic)] == magic:
            return f"is {kind}: {remedy}"
    if _PAGE.match(start):
        return "is a web page and not a checkpoint: download the file itself, logged in if need be"
    return _by_suffix(path)


def _by_suffix(path: Path) -> str:
    kind, remedy = _SUFFIXES.get(path.suffix.lower(), ("", ""))
    return f"is {kind}: {remedy}" if kind else ""


def describe_archive(members: Collection[str]) -> str:
    """Return what a zip archive is, by the names in it, that torch.save did not write."""
    if any(name.endswith(".npy") for name in members):
        return f"is an archive of NumPy arrays: {_ARRAYS}"
    if any(name.endswith("model.weights.h5") for name in members):
        return f"is a checkpoint of Keras: {_TENSORFLOW}"
    if any(name.endswith("models/model.json") for name in members):
        return f"is a program of torch.export: {_AGAIN}"
    return f"is a zip archive, but not one that torch.save wrote: {_UNPACK}"


def describe_folder(folder: Path) -> str:
    """Return what is in a folder that has no checkpoint in it, and what to do."""
    names = sorted(file.name for file in folder.iterdir())
    if any(name.endswith(".distcp") for name in names):
        return f"{folder} is a distributed checkpoint: " + _SUFFIXES[".distcp"][1]
    if "zero_to_fp32.py" in names:
        return f"{folder} is a checkpoint of DeepSpeed: run python zero_to_fp32.py . FILE.pt in it"
    for name in names:
        if found := _by_suffix(folder / name):
            return f"{folder} holds no checkpoint that can be read: {name} {found}"
    return ""
