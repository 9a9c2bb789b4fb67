"""Files and folders of the Hugging Face Hub, accepted wherever a path is.

`owner/name` means a repository unless such a path exists; `hf:owner/name` always does, and
`hf:owner/name/file.pt` means one file in it. `@revision` may follow: a branch, tag or commit. Files
are fetched into the Hub's own cache, and found there without a network. `package:NAME` is a file
that pip has installed, see `packages`.
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

from lightning_merge.core.checkpoints.packages import installed, packaged
from lightning_merge.core.errors import InputError

COMPANIONS = (
    "config.json", "configuration.json", "generation_config.json", "open_clip_config.json",
    "*processor_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab*", "merges.txt", "spiece.model", "sentencepiece*.model", "chat_template*",
    "configuration_*.py", "modeling_*.py",
)  # fmt: skip
"""Files that the Hub's libraries read besides weights; they are fetched along with them."""
_READ = (
    "config.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)  # the companions that this package reads
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
    """A repository or file on the Hub that cannot be fetched, or a package that is not installed.

    Examples:
        >>> issubclass(Unavailable, InputError)
        True
    """


class Repository(NamedTuple):
    """A repository on the Hub, or a file in it.

    Attributes:
        name: Owner and name, as in `owner/name`.
        file: Path in the repository; None for its weights and the files that describe them.
        revision: Branch, tag or commit; None for the main branch.

    Examples:
        >>> Repository("openai/clip-vit-base-patch32", file=None, revision="main").name
        'openai/clip-vit-base-patch32'
    """

    name: str
    file: str | None
    revision: str | None


def repository(path: str | Path) -> Repository | None:
    """Return the repository that a name means; None for a path.

    Args:
        path: Path or name.

    Examples:
        >>> repository("hf:openai/clip/weights.pt@v1")
        Repository(name='openai/clip', file='weights.pt', revision='v1')
        >>> repository("runs/expert.pt") is None
        True
    """
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
    """Whether a path exists or is the name of a repository or package, which may exist.

    Args:
        path: Path or name.
        plain: Whether `owner/name` counts as a name; pass False if a missing file will be created.

    Examples:
        >>> exists("openai/clip"), exists("openai/clip", plain=False), exists("missing.pt")
        (True, False, False)
    """
    named = repository(path) is not None and (plain or str(path).startswith(_PREFIXES))
    return lexists(path) or named or packaged(path) is not None


def local(path: str | Path) -> Path:
    """Return the local file or folder for a path, a name on the Hub or in a package.

    Args:
        path: Path or name.

    Raises:
        Unavailable: The repository or file is neither in the cache nor available from the Hub, or
            the package is not installed or has no such file.

    Examples:
        >>> str(local("runs/expert.pt"))
        'runs/expert.pt'
    """
    if (inside := packaged(path)) is not None:
        try:
            return installed(inside)
        except InputError as fault:
            raise Unavailable(str(fault)) from None
    named = repository(path)
    return Path(path) if named is None else _fetched(named)


def snapshot(folder: Path) -> Path:
    """Return the snapshot folder inside a repository folder of the Hub's cache; others as they are.

    Args:
        folder: Any folder.

    Raises:
        InputError: The cache holds no snapshot of the repository, or several.

    Examples:
        >>> Path("models--me--net/snapshots/3f2a").mkdir(parents=True)
        >>> snapshot(Path("models--me--net")).name
        '3f2a'
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
    """Return a repository's file of weights, or their index; any other path as it is.

    Args:
        path: Path or name.

    Raises:
        Unavailable: See `local`.

    Examples:
        >>> str(weights("runs/expert.pt"))
        'runs/expert.pt'
    """
    folder, named = local(path), repository(path)
    stored = [] if named is None or named.file is not None else _stored(folder)
    index = [file for file in stored if file.name.endswith(".index.json")]
    return (index or stored)[0] if 1 in (len(index), len(stored)) else folder


def _stored(folder: Path) -> list[Path]:
    """Return the weight files of the first kind present in a folder."""
    kinds = (sorted({f for p in patterns for f in folder.glob(p)}) for patterns in _WEIGHTS)
    return next(filter(None, kinds), [])


def files(path: str | Path) -> list[Path] | None:
    """Return the files of a repository that are used here, whatever else its cache holds.

    Args:
        path: Path or name.

    Returns:
        None for a path, and for a single file of a repository.

    Raises:
        Unavailable: See `local`.

    Examples:
        >>> files("runs/expert.pt") is None
        True
    """
    named = repository(path)
    if named is None or named.file is not None:
        return None
    folder = local(path)
    described = (folder / name for name in _READ)
    return sorted([*_stored(folder), *(file for file in described if file.is_file())])


@cache
def _fetched(wanted: Repository) -> Path:
    """Fetch a repository or file unless it is in the cache."""
    from huggingface_hub import hf_hub_download, snapshot_download

    name, revision = wanted.name, wanted.revision
    try:
        with offline_if_unreachable():
            if wanted.file is not None:
                return Path(hf_hub_download(name, wanted.file, revision=revision))
            for patterns in _WEIGHTS:
                kept = [*COMPANIONS, *patterns]
                folder = Path(snapshot_download(name, revision=revision, allow_patterns=kept))
                if _stored(folder):
                    return folder
    except Exception as fault:  # another library's, of many kinds
        reason = next(filter(None, str(fault).splitlines()), type(fault).__name__)
        raise Unavailable(_refusal(wanted, reason)) from fault
    if not folder.is_dir():
        raise Unavailable(f"{name!r} on the Hub holds no weights: correct the name")
    return folder


def would_fetch(path: str | Path) -> bool:
    """Whether opening a path would download weights, which a local path or the cache spares.

    Args:
        path: Path or name.

    Examples:
        >>> would_fetch("runs/expert.pt")
        False
    """
    named = repository(path)
    return named is not None and not any(_cached(named, file) for file in _files_of(named))


def headers(path: str | Path) -> list[tuple[str, str, list[int]]] | None:
    """Return name, type and shape of a repository's tensors without downloading their values.

    Args:
        path: Path or name.

    Returns:
        None if nothing would be downloaded, or if the Hub gives no headers of safetensors.

    Examples:
        >>> headers("runs/expert.pt") is None
        True
    """
    named = repository(path)
    if named is None or not would_fetch(path) or not reachable():
        return None
    from huggingface_hub import HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        if named.file is not None:
            read = api.parse_safetensors_file_metadata
            found = [read(named.name, named.file, revision=named.revision)]
        else:
            whole = api.get_safetensors_metadata(named.name, revision=named.revision)
            found = [*whole.files_metadata.values()]
    except Exception:  # of many kinds; opening the repository reports what is wrong
        return None
    return [(name, t.dtype, t.shape) for file in found for name, t in file.tensors.items()]


def _files_of(named: Repository) -> tuple[str, ...]:
    """Return the files of which a repository in the cache has one."""
    usual = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return usual if named.file is None else (named.file,)


def _cached(named: Repository, file: str) -> bool:
    from huggingface_hub import constants, try_to_load_from_cache

    cache = constants.HF_HUB_CACHE
    found = try_to_load_from_cache(named.name, file, cache_dir=cache, revision=named.revision)
    return isinstance(found, str)


@contextmanager
def given_as(option: str) -> Iterator[None]:
    """Prefix errors about an unavailable repository with the option that names it.

    Args:
        option: As the user wrote it.

    Examples:
        >>> with given_as("--base"):
        ...     raise Unavailable("'me/net' on the Hub holds no weights: correct the name")
        Traceback (most recent call last):
        lightning_merge...Unavailable: --base: 'me/net' on the Hub holds no weights: correct ...
    """
    try:
        yield
    except Unavailable as fault:
        raise Unavailable(f"{option}: {fault}") from fault


def _refusal(wanted: Repository, reason: str) -> str:
    name = "/".join(filter(None, [wanted.name, wanted.file]))
    if not reachable():
        return (
            f"{name!r} is neither a local path nor in the Hub's cache, and the Hub cannot be "
            "reached: go online once, or give the path of its file or folder instead"
        )
    return (
        f"{name!r} is not a local path, and the Hub does not provide it: {reason}. Correct the "
        "name, or give the path of a file or folder instead"
    )


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Put the Hub's library into offline mode if there is no network, so that it does not retry.

    Examples:
        >>> from huggingface_hub import constants
        >>> before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        >>> with offline_if_unreachable():
        ...     constants.HF_HUB_OFFLINE
        True
        >>> constants.HF_HUB_OFFLINE = before
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def reachable() -> bool:
    """Whether the Hub answers at all; asked once per process, and never in offline mode.

    Examples:
        >>> from huggingface_hub import constants
        >>> before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        >>> reachable()
        False
        >>> constants.HF_HUB_OFFLINE = before
    """
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


@cache
def _answers(endpoint: str) -> bool:
    """Whether the endpoint answers in time, including the DNS lookup."""
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
