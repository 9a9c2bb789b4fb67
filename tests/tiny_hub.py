"""A tiny Hub of our own that answers as huggingface.co does: fixtures for what fetches from it."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save

from lightning_merge.core.checkpoints import hub

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


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
