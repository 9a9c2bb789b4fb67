"""Names of the Hub in place of paths: a tiny Hub of our own gives what they name."""

import re
import socket
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clips import register
from tiny_hub import *  # noqa: F403
from tiny_hub import COMMITS, weights

from lightning_merge.cli.main import main
from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.activation import activation_of
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint
from lightning_merge.core.checkpoints.digests import file_fingerprint, file_hash
from lightning_merge.core.checkpoints.hub import Repository, repository
from lightning_merge.core.errors import InputError
from lightning_merge.models import MiniViT, OpenClipEncoder, TimmEncoder, TransformersEncoder
from lightning_merge.models.from_open_clip import create_clip, tokenizer


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
