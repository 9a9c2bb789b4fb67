"""The commands and lines of README.md that take a network to its library, run as they stand."""

import re
import shlex
from pathlib import Path

import open_clip
import timm
import torch
from safetensors.torch import save_file
from tiny_clips import both, register
from tiny_texts import network

README = Path(__file__).resolve().parents[2] / "README.md"
SECTION = README.read_text(encoding="utf-8").split("[start:convert]")[1].split("[end:convert]")[0]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)


def merged(state, file):
    moved = {n: t + 1 if t.is_floating_point() else t for n, t in state.items()}
    save_file(moved, file)
    return moved


def test_the_readmes_lines_load_merged_networks(run, tmp_path, monkeypatch):
    """Tiny networks lie where the repositories would be."""
    monkeypatch.chdir(tmp_path)
    name = register(tmp_path)
    clip, _ = both(name)
    tower = merged(clip.visual.state_dict(), "merged.safetensors")
    place = Path("laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    from open_clip.push_to_hf_hub import save_for_hf

    tokenizer = open_clip.get_tokenizer(name)
    tokenizer.save_pretrained = lambda folder: None
    model_cfg = open_clip.get_model_config(name)
    save_for_hf(clip, tokenizer, model_cfg, str(place), safe_serialization=True)
    resnet = timm.create_model("resnet18", num_classes=2)
    timm.models.save_for_hf(resnet, "timm/resnet50.a1_in1k", safe_serialization=True)
    state = {n: t for n, t in resnet.state_dict().items() if not n.startswith("fc.")}
    backbone = merged(state, "tuned.safetensors")
    bert = network(Path("google-bert/bert-base-uncased"))
    text = merged(bert.state_dict(), "text.safetensors")
    (commands,) = blocks("bash")
    for command in commands.replace("\\\n", " ").splitlines():
        result = run(*shlex.split(command)[3:])
        assert result.code == 0, result.err
    expected = [{f"visual.{n}": t for n, t in tower.items()}, backbone, text]
    for lines, wanted in zip(blocks("python"), expected, strict=True):
        assert len([line for line in lines.splitlines() if line]) == 3
        scope = {}
        exec(lines, scope)
        loaded = scope["model"].state_dict()
        assert all(torch.equal(loaded[n], t) for n, t in wanted.items())
        if "tokenizer" in scope:
            assert len(scope["tokenizer"]("joy"))
