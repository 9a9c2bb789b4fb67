"""Files and folders of the Hugging Face Hub, wherever a path is taken.

`owner/name`, which is no path here, is a repository; `hf:owner/name` is one in any case,
`hf:owner/name/file.pt` a file in it, and `@revision` behind either a branch, tag or commit. They
are fetched into the Hub's own cache, and found there without a network.
"""

import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from os.path import lexists
from pathlib import Path
from typing import NamedTuple

from lightning_merge.core.errors import InputError

COMPANIONS = (
    "config.json", "configuration.json", "generation_config.json", "open_clip_config.json",
    "*processor_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab*", "merges.txt", "spiece.model", "sentencepiece*.model", "chat_template*",
    "configuration_*.py", "modeling_*.py",
)  # fmt: skip
"""Files that libraries of the Hub read beside weights; they are fetched with them."""
_READ = (
    "config.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)  # those of them that are read here
_WEIGHTS = (  # the first kind that a repository has
    ("model.safetensors*", "model-*-of-*.safetensors"),
    ("pytorch_model.bin*", "pytorch_model-*-of-*.bin"),
    *((f"*{suffix}*",) for suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt")),
)
_SUFFIXES = (
    ".safetensors",
    ".pt",
    ".pth",
    ".bin",
    ".ckpt",
    ".json",
    ".pkl",
    ".tar",
    ".gguf",
    ".yaml",
)
_PATIENCE = 3.0  # seconds that the Hub has to answer
_NAME = r"[\w][\w.-]*/[\w][\w.-]*"
_PREFIXES = ("hf:", "hf-hub:")


class Unavailable(InputError):
    """What a name of the Hub stands for cannot be had."""


class Repository(NamedTuple):
    """What a name means.

    Attributes:
        name: owner/name.
        file: Path in the repository; none for its weights with what describes them.
        revision: Branch, tag or commit; the main branch without.
    """

    name: str
    file: str | None
    revision: str | None


def repository(path: str | Path) -> Repository | None:
    """Return what a name of the Hub means; None for a path."""
    text = str(path)
    kinds = "|".join(_PREFIXES)
    prefixed = re.fullmatch(rf"(?:{kinds})({_NAME})(?:/([^@]+))?(?:@(.+))?", text)
    if prefixed:
        return Repository(prefixed[1], prefixed[2], prefixed[3])
    plain = re.fullmatch(rf"({_NAME})(?:@([^@]+))?", text)
    if plain is None or lexists(text):
        return None
    if any(end.lower().endswith(_SUFFIXES) for end in (plain[1], text)):
        return None
    return Repository(plain[1], None, plain[2])


def exists(path: str | Path, *, plain: bool = True) -> bool:
    """Whether a path is there, or is the name of a repository, which may be.

    Args:
        path: The path or name.
        plain: Whether `owner/name` is a name; not where a file that is missing is made.
    """
    named = repository(path) is not None and (plain or str(path).startswith(_PREFIXES))
    return lexists(path) or named


def local(path: str | Path) -> Path:
    """Return the file or folder here that a path or a name of the Hub stands for.

    Raises:
        Unavailable: A repository or file cannot be had, from the cache or from the Hub.
    """
    found = repository(path)
    return Path(path) if found is None else _fetched(found)


def snapshot(folder: Path) -> Path:
    """Return the folder of files that a folder of the Hub's cache stands for; any other as it is.

    Raises:
        InputError: The cache has none of it, or several to choose from.
    """
    if folder.name.startswith("models--") and not (folder / "config.json").exists():
        folder = folder / "snapshots"
    if folder.name != "snapshots":
        return folder
    snapshots = sorted(f for f in folder.iterdir() if f.is_dir()) if folder.is_dir() else []
    if len(snapshots) != 1:
        choices = ", ".join(f.name for f in snapshots[:5])
        raise InputError(
            f"{folder} holds several snapshots: {choices}. Give the path of one"
            if snapshots
            else f"{folder} holds no snapshot: the download was not finished; run it again"
        )
    return snapshots[0]


def weights(path: str | Path) -> Path:
    """Return the file of weights, or their index, of a repository; of any other path itself.

    Raises:
        Unavailable: As `local`.
    """
    folder, found = local(path), repository(path)
    stored = [] if found is None or found.file is not None else _stored(folder)
    index = [file for file in stored if file.name.endswith(".index.json")]
    return (index or stored)[0] if 1 in (len(index), len(stored)) else folder


def _stored(folder: Path) -> list[Path]:
    """Return the files of the first kind of weights in a folder."""
    kinds = (sorted({f for p in patterns for f in folder.glob(p)}) for patterns in _WEIGHTS)
    return next(filter(None, kinds), [])


def files(path: str | Path) -> list[Path] | None:
    """Return the files of a repository that are used here, however many its cache holds.

    Returns:
        None for a path, and for a single file of a repository.

    Raises:
        Unavailable: As `local`.
    """
    found = repository(path)
    if found is None or found.file is not None:
        return None
    folder = local(path)
    described = (folder / name for name in _READ)
    return sorted([*_stored(folder), *(file for file in described if file.is_file())])


@cache
def _fetched(found: Repository) -> Path:
    """Fetch what a name means unless the cache has it."""
    from huggingface_hub import hf_hub_download, snapshot_download

    name, revision = found.name, found.revision
    try:
        with no_longer_than_needed():
            if found.file is not None:
                return Path(hf_hub_download(name, found.file, revision=revision))
            for patterns in _WEIGHTS:
                wanted = [*COMPANIONS, *patterns]
                folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
                if _stored(folder):
                    return folder
    except Exception as fault:  # another library's, of many kinds
        reason = next(filter(None, str(fault).splitlines()), type(fault).__name__)
        raise Unavailable(_refusal(found, reason)) from fault
    if not folder.is_dir():
        raise Unavailable(f"{name!r} on the Hub holds no weights: correct the name")
    return folder


@contextmanager
def given_as(option: str) -> Iterator[None]:
    """Put the option that names a repository in front of the error for one that cannot be had."""
    try:
        yield
    except Unavailable as fault:
        raise Unavailable(f"{option}: {fault}") from fault


def _refusal(found: Repository, reason: str) -> str:
    name = "/".join(filter(None, [found.name, found.file]))
    if not reachable():
        return (
            f"{name!r} is neither a path here nor in the Hub's cache, and the Hub cannot be "
            "reached: go online once, or give the path of its file or folder instead"
        )
    return (
        f"{name!r} is not a path here, and the Hub does not give it: {reason}. Correct the name, "
        "or give the path of a file or folder instead"
    )


@contextmanager
def no_longer_than_needed() -> Iterator[None]:
    """Keep the Hub's library from trying for a minute where there is no network."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def reachable() -> bool:
    """Whether the Hub answers at all, in any way; asked once."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


@cache
def _answers(endpoint: str) -> bool:
    """Whether there is any answer in time, the look-up of the address included."""
    answers: list[object] = []

    def ask() -> None:
        request = urllib.request.Request(endpoint, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_PATIENCE).close()
        except urllib.error.HTTPError as answer:
            answers.append(answer)
        except urllib.error.URLError as fault:
            answers.extend([fault] if isinstance(fault.reason, ssl.SSLError) else [])
        except OSError:
            pass
        else:
            answers.append(request)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return bool(answers)
