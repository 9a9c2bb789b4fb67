"""The model card beside a converted network, and its way to a Hub that answers as the real one."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load
from tiny_texts import network

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.evaluation.bootstrap import Interval
from lightning_merge.evaluation.results import CandidateResult, Results

HOST, COMMIT = "https://huggingface.co", "1" * 40
ABOUT = {
    "method": "Ties",
    "hyperparameters": "Ties(density=0.2)",
    "base": "sample:abc",
    "expert/films": "sample:123",
    "expert/books": "sample:456",
    "repositories": json.dumps({"base": "me/bert@v1", "expert/films": "hf:you/films"}),
}


class Hub(BaseHTTPRequestHandler):
    """Takes what the library uploads, as huggingface.co does for files that need no LFS."""

    taken: dict

    def log_message(self, *_): ...

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.answer({})

    def do_GET(self):
        self.answer({"id": "me/net", "sha": "a" * 40, "siblings": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/api/repos/create"):
            given = json.loads(body)
            url = {"url": f"{HOST}/{given['organization']}/{given['name']}"}
            if "repository" in self.taken:
                return self.answer({"error": "You already created this model repo", **url}, 409)
            self.taken["repository"] = given
            return self.answer(url)
        if self.path.endswith("/api/validate-yaml"):
            self.taken["validated"] = json.loads(body)["content"]
            return self.answer({"warnings": [], "errors": []})
        if "/preupload/" in self.path:
            files = [f["path"] for f in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            return self.answer({"files": [{"path": path, **regular} for path in files]})
        lines = [json.loads(line) for line in body.splitlines()]
        files = [line["value"] for line in lines if line["key"] == "file"]
        self.taken["files"] = {f["path"]: base64.b64decode(f["content"]) for f in files}
        return self.answer({"commitUrl": f"{HOST}/me/net/commit/{COMMIT}", "commitOid": COMMIT})


@pytest.fixture
def taken(monkeypatch):
    """Be at a Hub of our own; what it has taken."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    Serving = type("Serving", (Hub,), {"taken": {}})
    running = ThreadingHTTPServer(("127.0.0.1", 0), Serving)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{running.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    disable_progress_bars()
    yield Serving.taken
    running.shutdown()
    running.server_close()


@pytest.fixture
def given(tmp_path, capsys):
    """A base, weights merged from it, and the results of a run that has measured them."""
    base = network(tmp_path / "base")
    state = {name: tensor + 1 for name, tensor in base.state_dict().items()}
    file = save_checkpoint(state, tmp_path / "ties.safetensors", metadata=ABOUT)
    samples = {"films": 200, "books": 100}
    rows = {
        "base": CandidateResult("base", {"films": 0.5, "books": 0.25}, samples, 0.0, bound=True),
        "ties": CandidateResult(
            "ties", {"films": 0.75, "books": 0.5}, samples, 1.0, note="scale chosen",
            transductive=True, intervals={"films": Interval(0.7, 0.8)},
        ),
    }  # fmt: skip
    notes = ["Test labels reach metrics only."]
    Results(["films", "books"], rows, 0, {}, notes=notes).to_json(tmp_path / "results.json")
    capsys.readouterr()
    return [file, "--to", "transformers", "--base", tmp_path / "base", "--output", tmp_path / "net"]


def test_a_card_says_what_the_network_is(run, given, tmp_path):
    assert run("convert", *given, "--results", tmp_path / "results.json").code == 0
    card = ModelCard.load(tmp_path / "net" / "README.md")
    data = card.data
    assert data.base_model == ["me/bert", "you/films"]
    assert data.library_name == "transformers"
    assert data.tags == ["merge", "lightning-merge", "ties"]
    measured = {(e.dataset_name, e.metric_type, e.metric_value) for e in data.eval_results}
    assert measured == {("films", "accuracy", 0.75), ("books", "accuracy", 0.5)}
    assert {e.task_type for e in data.eval_results} == {"text-classification"}
    fields = yaml.safe_load(card.content.split("---")[1])
    assert [entry["name"] for entry in fields["model-index"]] == ["net"]
    own = fields["lightning_merge"]
    assert own["method"] == "Ties"
    assert own["hyperparameters"] == "Ties(density=0.2)"
    assert own["inputs"]["expert/books"] == "sample:456"
    assert own["inputs"]["source"].startswith("sample:")
    for words in (
        "transformers.BertModel.from_pretrained('net')",
        "| films | 75.0 % | 70.0 to 80.0 | 200 |",
        "Test examples were seen",
        "Test labels reach metrics only.",
    ):
        assert words in card.text
    assert str(tmp_path) not in card.content


def test_a_card_keeps_what_is_out_of_domain_apart(run, given, tmp_path):
    samples = {"films": 200, "news": 300}
    row = CandidateResult("ties", {"films": 0.75, "news": 0.25}, samples, 1.0)
    results = Results(["films", "news"], {"ties": row}, 0, {}, out_of_domain=["news"])
    results.to_json(tmp_path / "results.json")
    assert run("convert", *given, "--results", tmp_path / "results.json").code == 0
    text = ModelCard.load(tmp_path / "net" / "README.md").text
    assert "| average | 75.0 % |" in text
    assert "| average out of domain | 25.0 % |" in text


def test_a_card_is_not_about_the_network_of_another_run(run, given, tmp_path):
    merged = tmp_path / "merged" / "ties.safetensors"
    save_checkpoint({"other": torch.ones(1)}, merged)
    found = run("convert", *given, "--results", tmp_path / "results.json")
    assert found.code == 2
    assert "which is not source=" in found.err


def test_a_card_without_results_has_none(run, given, tmp_path):
    assert run("convert", *given).code == 0
    card = ModelCard.load(tmp_path / "net" / "README.md")
    assert card.data.eval_results is None
    assert "accuracy" not in card.content


@pytest.mark.parametrize("public", [False, True])
def test_a_network_goes_to_the_hub_as_it_is(run, given, taken, tmp_path, public):
    """The library checks the card's metadata, asks how to send files, and commits them at once."""
    words = ["--push-to-hub", "me/net", *(["--public", "true"] if public else [])]
    result = run("convert", *given, *words)
    assert result.code == 0, result.err
    made = taken["repository"]  # versions of the library say it in two ways
    assert made.get("visibility", "private" if made.get("private") else "public") == (
        "public" if public else "private"
    )
    assert "uploaded to" in result.out
    here = {file.name: file.read_bytes() for file in (tmp_path / "net").iterdir()}
    assert taken["files"] == here
    assert "from_pretrained('me/net')" in taken["validated"]
    sent = load(taken["files"]["model.safetensors"])
    stored = open_checkpoint(tmp_path / "net")
    assert all((sent[name] == stored[name]).all() for name in stored)


def test_a_repository_that_exists_gets_a_commit_only_if_asked(run, given, taken, tmp_path):
    words = ["--push-to-hub", "me/net"]
    assert run("convert", *given, *words).code == 0
    taken.pop("files")
    result = run("convert", *given, *words, "--output", tmp_path / "again")
    assert result.code == 2
    assert "--overwrite true" in result.err
    assert "is complete" in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert "files" not in taken
    more = ["--output", tmp_path / "more", "--overwrite", "true"]
    result = run("convert", *given, *words, *more)
    assert result.code == 0, result.err
    assert "model.safetensors" in taken["files"]


REFUSED = {
    "a repository without owner": (["--push-to-hub", "net"], "give user/name"),
    "public without a repository": (["--public", "true"], "give --push-to-hub"),
    "no network": (["--push-to-hub", "me/net"], "the Hub cannot be reached"),
    "a run without results": (["--results", "{base}"], "has no results"),
    "results of another network": (
        ["--results", "{results}", "--candidate", "average"],
        "one of base, ties",
    ),
    "a file": (["--to", "safetensors", "--output", "x.safetensors", "--push-to-hub", "me/net"], ""),
}


@pytest.mark.parametrize("why", REFUSED)
def test_bad_input_is_refused_before_anything_is_written(why, run, given, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub._answers.cache_clear()
    monkeypatch.chdir(tmp_path)
    words, message = REFUSED[why]
    words = [w.format(base=tmp_path / "base", results=tmp_path / "results.json") for w in words]
    before = sorted(tmp_path.rglob("*"))
    result = run("convert", *given, *words)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
