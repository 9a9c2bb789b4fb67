"""Names of the Hub in place of paths: a tiny Hub of our own gives what they name."""

import hashlib
import json
import re
import socket
import threading
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from tiny_clips import register

from lightning_merge.cli.main import main
from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.activation import activation_of
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.checkpoints.digests import file_fingerprint, file_hash
from lightning_merge.core.checkpoints.hub import Repository, repository
from lightning_merge.core.errors import InputError
from lightning_merge.models import MiniViT, OpenClipEncoder, TimmEncoder, TransformersEncoder
from lightning_merge.models.from_open_clip import create_clip, tokenizer

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("owner/name", Repository("owner/name", None, None)),
        ("owner/name@v1", Repository("owner/name", None, "v1")),
        ("owner/name@refs/pr/3", Repository("owner/name", None, "refs/pr/3")),
        ("open-ai/clip-vit_b.32", Repository("open-ai/clip-vit_b.32", None, None)),
        ("hf:owner/name", Repository("owner/name", None, None)),
        ("hf-hub:owner/name@v1", Repository("owner/name", None, "v1")),
        (
            "hf:owner/name/ViT-B-32/Cars/full.pt",
            Repository("owner/name", "ViT-B-32/Cars/full.pt", None),
        ),
        ("hf:owner/name/full.pt@v1", Repository("owner/name", "full.pt", "v1")),
        ("hf:owner/name.pt", Repository("owner/name.pt", None, None)),
        ("weights.safetensors", None),
        ("runs/weights.safetensors", None),
        ("runs/last.CKPT", None),
        ("a/b/c", None),
        ("/owner/name", None),
        ("./owner/name", None),
        ("../owner/name", None),
        ("~/name", None),
        ("name", None),
        ("owner/", None),
        ("owner/name@", None),
        ("runs/x@2.pt", None),
        ("hf:name", None),
        ("", None),
    ],
)
def test_what_a_name_means(tmp_path, monkeypatch, name, meaning):
    monkeypatch.chdir(tmp_path)
    assert repository(name) == meaning
    assert hub.exists(name) == (meaning is not None)
    prefixed = name.startswith("hf") and meaning is not None
    assert hub.exists(name, plain=False) == prefixed


def test_a_path_that_is_there_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert repository("owner/name") is None
    assert hub.local("owner/name") == Path("owner/name")
    assert repository("hf:owner/name") == Repository("owner/name", None, None)


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"layer.weight": torch.full((2, 3), value), "layer.bias": torch.ones(2)}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Files of repositories by name, commit and path."""
    folder = tmp_path_factory.mktemp("files")
    torch.save(weights(5.0), folder / "full.pt")
    pickled = (folder / "full.pt").read_bytes()
    config = json.dumps({"model_type": "tiny"}).encode()
    shards = {"layer.weight": "model-00001-of-00002.safetensors"}
    shards["layer.bias"] = "model-00002-of-00002.safetensors"
    first, second = ({name: weights(3.0)[name]} for name in shards)
    return {
        "me/base": {
            "main": {"config.json": config, "model.safetensors": save(weights(1.0)),
                     "tokenizer.json": b"{}", "merges.txt": b"a b", "vocab.json": b"{}",
                     "pytorch_model.bin": b"never asked for", "tf_model.h5": b"nor this"},
            "v1": {"config.json": config, "model.safetensors": save(weights(2.0))},
        },
        "me/shards": {"main": {
            "config.json": config, shards["layer.weight"]: save(first),
            shards["layer.bias"]: save(second),
            "model.safetensors.index.json": json.dumps({"weight_map": shards}).encode(),
        }},
        "me/pickle": {"main": {"pytorch_model.bin": pickled, "open_clip.bin": b"not asked for"}},
        "me/many": {"main": {
            "a.safetensors": save(weights(1.0)), "b.safetensors": save(weights(2.0)),
            "deep/down/full.pt": pickled,
        }},
        "me/other": {"main": {"model.safetensors": save({
            "layer.weight": torch.ones(3, 3), "layer.bias": torch.ones(2), "more.w": torch.ones(1),
        })}},
        "me/part": {"main": {"model.safetensors": save({"layer.bias": torch.ones(2)})}},
        "me/empty": {"main": {"README.md": b"nothing"}},
        "me/open": {"main": {
            "open_clip_config.json": b'{"model_cfg": {"embed_dim": 24, "quick_gelu": true}}',
            "open_clip_model.safetensors": save(weights(1.0)),
        }},
    }  # fmt: skip


def header_size(content: bytes) -> int:
    """Return the bytes of a safetensors file before its tensors."""
    return 8 + int.from_bytes(content[:8], "little")


class Hub(BaseHTTPRequestHandler):
    """Answers as huggingface.co does; `asked` has every file that was sent."""

    repositories: dict[str, dict[str, dict[str, bytes]]]
    asked: list[str]

    def log_message(self, *_): ...

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self.about("/".join(parts[2:4]), parts[4:])
        if len(parts) > 4 and parts[2] == "resolve":
            return self.send_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self.answer(b"", 200)

    do_HEAD = do_GET

    def files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = {COMMITS[branch]: branch for branch in self.repositories.get(name, {})}
        branch = commits.get(revision, revision)
        found = self.repositories.get(name, {}).get(branch)
        return None if found is None else (COMMITS[branch], found)

    def about(self, name: str, rest: list[str]) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        found = self.files(name, revision)
        if found is None:
            code = "RevisionNotFound" if name in self.repositories else "RepoNotFound"
            return self.answer(b"{}", 404, X_Error_Code=code)
        commit, files = found
        if rest and rest[0] == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(content),
                 "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]  # fmt: skip
            content = json.dumps(entries).encode()
        else:
            about = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": []}
            about["siblings"] = [{"rfilename": path} for path in files]
            content = json.dumps(about).encode()
        return self.answer(content, Content_Type="application/json")

    def send_file(self, name: str, revision: str, path: str) -> None:
        found = self.files(name, revision)
        if found is None or path not in found[1]:
            return self.answer(b"", 404, X_Error_Code="EntryNotFound")
        commit, files = found
        content = files[path]
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if part:  # as many bytes as a header needs
            content = content[int(part[1]) : int(part[2]) + 1][: header_size(content)]
        if self.command == "GET":
            self.asked.append(f"{name}/{path}{' header' if part else ''}")
        etag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
        return self.answer(content, 206 if part else 200, ETag=etag, X_Repo_Commit=commit)


@pytest.fixture(scope="module")
def server(repositories):
    """Serve them; yield the address and the files sent."""
    Served = type("Served", (Hub,), {"repositories": repositories, "asked": []})
    running = ThreadingHTTPServer(("127.0.0.1", 0), Served)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", Served.asked
    running.shutdown()
    running.server_close()


@pytest.fixture
def at(monkeypatch, tmp_path):
    """Let a Hub be at some address, with an empty cache; the library reads both when it starts."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    def move(endpoint: str) -> None:
        template = "{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{endpoint}/{template}")
        hub._fetched.cache_clear()

    disable_progress_bars()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield move
    hub._fetched.cache_clear()


@pytest.fixture
def asked(at, server):
    """Be at the tiny Hub; a list of every file that it sends."""
    endpoint, asked = server
    at(endpoint)
    asked.clear()
    return asked


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("me/base", 1.0),
        ("hf:me/base", 1.0),
        ("me/base@v1", 2.0),
        ("me/base@" + COMMITS["v1"], 2.0),
        ("me/shards", 3.0),
        ("me/pickle", 5.0),
        ("hf:me/many/a.safetensors", 1.0),
        ("hf:me/many/deep/down/full.pt@main", 5.0),
    ],
)
def test_what_is_named_is_fetched_once_and_no_more(asked, name, value):
    """Weights by their kind, whole or in shards, at a revision, or one file by its path."""
    for _ in range(2):
        opened = open_checkpoint(name)
        assert opened["layer.weight"].eq(value).all()
        assert len(opened) == 2
    never = {"me/base/pytorch_model.bin", "me/base/tf_model.h5", "me/pickle/open_clip.bin"}
    assert not never & set(asked)
    assert len(asked) == len(set(asked))


def test_a_hash_is_that_of_the_files_that_are_used(asked):
    """Files that something else brings into the cache do not change it, another revision does."""
    from huggingface_hub import hf_hub_download

    before = file_hash("me/base"), file_fingerprint("me/base")
    hf_hub_download("me/base", "tf_model.h5")
    assert (file_hash("me/base"), file_fingerprint("me/base")) == before
    assert file_hash("me/base@v1") != before[0]
    alone = "hf:me/many/a.safetensors"
    assert file_hash(alone) == file_hash(hub.local(alone))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("me/nothing", "'me/nothing' is not a local path, and the Hub does not provide it"),
        ("me/base@v9", "'me/base' is not a local path"),
        ("hf:me/base/nothing.pt", "'me/base/nothing.pt' is not a local path"),
        ("me/empty", "'me/empty' on the Hub holds no weights"),
        ("me/many", "holds several checkpoints: a.safetensors, b.safetensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:No files matched")
def test_what_the_hub_does_not_have_is_named(asked, name, message):
    with pytest.raises(InputError, match=re.escape(message)):
        open_checkpoint(name)


def test_what_was_fetched_is_there_without_a_network(asked, at, monkeypatch):
    open_checkpoint("me/base")
    at(closed_port())
    assert open_checkpoint("me/base")["layer.weight"].eq(1).all()
    hub._fetched.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert open_checkpoint("me/base")["layer.weight"].eq(1).all()
    assert asked.count("me/base/model.safetensors") == 1


def closed_port() -> str:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(params=["refused", "silent", "unknown", "offline"])
def unreachable(request, at, monkeypatch):
    """Be at a Hub that refuses, one that takes the call and says nothing, one of no address."""
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        at({"refused": closed_port(), "silent": address}.get(request.param, "http://hub.invalid"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", request.param == "offline")
        yield silent if request.param == "silent" else None


def calls(listening: socket.socket) -> int:
    """Return how many calls wait to be answered."""
    listening.setblocking(False)
    waiting = []
    with suppress(BlockingIOError):
        while True:
            waiting.append(listening.accept()[0])
    for connection in waiting:
        connection.close()
    return len(waiting)


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        (open_checkpoint, "give the path of its file or folder instead"),
        (TransformersEncoder, "source='me/base'.*give the path of its file or folder instead"),
        (lambda _: OpenClipEncoder("RN50-quickgelu", "openai"), "give a file as weights"),
        (lambda _: TimmEncoder("resnet10t", pretrained=True), "give a file as weights"),
    ],
)
def test_without_a_network_the_error_comes_soon_and_says_what_to_give(unreachable, call, remedy):
    """Left alone, the libraries of open_clip and timm try six times in 47 seconds."""
    hub._answers.cache_clear()
    with pytest.raises(InputError, match=f"(?s){remedy}"):
        call("me/base")
    assert unreachable is None or calls(unreachable) == 1


def test_merge_takes_names_of_the_hub(asked, tmp_path, capsys):
    words = ["merge", "--base", "me/base", "--experts.a", "me/base@v1", "--experts.b", "me/shards"]
    assert main([*words, "--output", "merged.safetensors", "--method", "Average"]) == 0
    merged = load_file(tmp_path / "merged.safetensors")
    assert torch.equal(merged["layer.weight"], torch.full((2, 3), 2.5))
    assert main([*words, "--output", "m", "--method", "Average", "--max-shard-size", "1GB"]) == 0
    beside = {"config.json", "tokenizer.json", "merges.txt", "vocab.json"}
    assert beside < {file.name for file in (tmp_path / "m").iterdir()}


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        ("me/other", "1 not in the base (more.w); 1 of another shape (layer.weight [3, 3], in"),
        ("me/part", "1 missing (layer.weight)"),
        ("hf:me/other/model.safetensors@main", "1 not in the base (more.w); 1 of"),
    ],
)
def test_headers_are_compared_before_weights_are_downloaded(asked, capsys, expert, message):
    words = ["merge", "--base", "me/shards", "--experts.a", "me/base", "--experts.b", expert]
    words += ["--output", "merged.safetensors", "--method", "Average"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"expert/b: {message}" in error
    assert "expert/a" not in error
    weights = [name for name in asked if name.endswith(".safetensors")]
    assert not weights
    assert len([name for name in asked if name.endswith(" header")]) == 4
    assert not Path("merged.safetensors").exists()


def test_headers_are_compared_with_files_that_are_here(asked, capsys, tmp_path):
    save_file(weights(1.0), tmp_path / "x.safetensors")
    words = ["merge", "--base", "x.safetensors", "--experts.b", "me/other", "--method", "Average"]
    assert main([*words, "--output", "merged.safetensors"]) == 2
    assert asked == ["me/other/model.safetensors header"]
    ignored = ["--ignore", "[layer.weight, more.*]"]
    assert main([*words, "--output", "merged.safetensors", *ignored]) == 0
    assert "me/other/model.safetensors" in asked
    asked.clear()
    again = [*words, *ignored, "--output", "merged.safetensors", "--overwrite", "true"]
    assert main(again) == 0
    assert not asked


def test_what_a_repository_says_of_its_activation(asked):
    assert activation_of("me/open") == "quick_gelu"
    assert activation_of("me/base") is None


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["merge", "--base", "me/a", "--experts.b", "me/b"], "--base: 'me/a'"),
        (["merge", "--base", "x.safetensors", "--experts.b", "hf:me/b/c.pt"], "--experts.b: 'me/b"),
        (["mergeability", "--base", "me/a", "--experts.b", "w.safetensors"], "--base: 'me/a'"),
        (["mergeability", "--base", "me/a", "--experts.b", "me/b"], "--experts.b: 'me/b'"),
    ],
)
def test_the_option_of_what_cannot_be_had_is_named(at, tmp_path, capsys, words, option):
    at(closed_port())
    save_file(weights(1.0), tmp_path / "x.safetensors")
    encoder = MiniViT(image_size=8)
    save_file(encoder.backbone.state_dict(), tmp_path / "w.safetensors")
    if words[0] == "merge":
        words = [*words, "--method", "Average", "--output", "merged.safetensors"]
    else:
        words = [*words, "--encoder", "MiniViT", "--encoder.image_size", "8"]
        words += ["--data.root", ".", "--data.tasks", "[b]"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {option}")
    assert "cannot be reached" in error
    assert error.count("\n") == 1


@pytest.fixture
def never_asked(monkeypatch):
    """Fail where the Hub is asked."""

    def never(*_, **__):
        raise AssertionError("asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", never)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", never)
    monkeypatch.setattr(hub, "_answers", never)


def test_networks_without_published_weights_never_ask_the_hub(never_asked, tmp_path):
    TimmEncoder("resnet10t")
    encoder = OpenClipEncoder(register(tmp_path))
    save_file(encoder.backbone.state_dict(), tmp_path / "w.safetensors")
    OpenClipEncoder(register(tmp_path), weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize("make", [create_clip, tokenizer])
def test_text_towers_that_are_kept_on_the_hub(at, make):
    """Left alone, their library tries for 23 seconds, and ends in an OSError of four lines."""
    at(closed_port())
    with pytest.raises(InputError, match=r"of roberta-ViT-B-32 could not be loaded .*Go online"):
        make("roberta-ViT-B-32")


def test_local_files_never_ask_the_hub(never_asked, tmp_path):
    save_file(weights(1.0), tmp_path / "x.safetensors")
    assert hub.weights(tmp_path / "x.safetensors") == tmp_path / "x.safetensors"
    assert hub.local(str(tmp_path)) == tmp_path
    with pytest.raises(InputError, match="does not exist: check the path"):
        open_checkpoint(tmp_path / "y.safetensors")
