"""What `convert` writes loads in the library it names, bit for bit, and comes back as it was."""

import json
import re
import shlex
import shutil
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import transformers
import yaml
from safetensors.torch import load_file
from tiny_clips import CONFIG, TOWER_CONFIG, both, hub_folder, moved, pickled, register
from tiny_texts import network, t5

from lightning_merge.cli.show import show
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint, spelled_as
from lightning_merge.evaluation.results import CandidateResult, Results
from lightning_merge.models import TimmEncoder, TransformersEncoder

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TIMM = "vit_tiny_patch16_224"
OPTIONS = {"depth": 2, "num_heads": 2, "embed_dim": 32}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """One CLIP in both libraries' forms, and a tower that was moved away from it."""
    folder = tmp_path_factory.mktemp("clip")
    name = register(folder)
    ours, theirs = both(name)
    state = ours.state_dict()
    other = spelled_as(state, theirs.state_dict())
    other = {n: other[n] for n in other}
    expert = moved(state, 1, ("visual.",))
    tower = {n.removeprefix("visual."): t for n, t in expert.items() if n.startswith("visual.")}
    about = {"activation": "quick_gelu"}
    found = {
        "name": name,
        "state": state,
        "expert": expert,
        "tower": save_checkpoint(tower, folder / "tower.safetensors", metadata=about),
        "hub": hub_folder(other, folder / "hub", CONFIG),
        "pickle": pickled(name, expert, folder / "finetuned.pt"),
    }
    torch.save(state, folder / "whole.bin")
    return found | {"whole": folder / "whole.bin", "config": folder / f"{name}.json"}


@pytest.fixture
def converted(run, tmp_path):
    def call(source, to, *options, name="out"):
        output = tmp_path / name
        result = run("convert", source, "--to", to, "--output", output, *options)
        assert result.code == 0, result.err
        return output, result.out

    return call


def encoder_of(clip):
    return "--encoder", "OpenClipEncoder", "--encoder.name", clip["name"]


def loaded_by_open_clip(folder):
    return open_clip.create_model(f"local-dir:{folder}").eval()


def equal(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_open_clip_loads_a_tower_with_its_bases_text(clip, converted):
    output, told = converted(clip["tower"], "open_clip", *encoder_of(clip), "--base", clip["whole"])
    model = loaded_by_open_clip(output)
    assert equal(model.state_dict(), clip["expert"])
    assert f"open_clip.create_model('local-dir:{output}')" in told
    assert "transformer.* (" in told  # what is the base's


def test_transformers_loads_what_open_clip_does(clip, converted):
    options = [*encoder_of(clip), "--base", clip["whole"]]
    theirs, _ = converted(clip["tower"], "transformers", *options)
    model = transformers.CLIPModel.from_pretrained(theirs).eval()
    expected = spelled_as(clip["expert"], model.state_dict())
    assert equal(model.state_dict(), expected)
    texts = ["a photo of a tree frog", "two cats, it's raining"]
    ours = open_clip.create_model(clip["name"]).eval()
    ours.load_state_dict(clip["expert"])
    tokens = transformers.AutoTokenizer.from_pretrained(theirs)(texts, padding="max_length")
    own = open_clip.get_tokenizer(clip["name"])(texts)
    for row, mine in zip(tokens["input_ids"], own, strict=True):
        length = int(mine.argmax()) + 1
        assert row[:length] == mine[:length].tolist()
    with torch.no_grad():
        features = model.get_image_features(pixel_values=IMAGES)
        features = getattr(features, "pooler_output", features)
        torch.testing.assert_close(features, ours.encode_image(IMAGES), rtol=1e-4, atol=1e-5)
        words = model.get_text_features(input_ids=own)
        words = getattr(words, "pooler_output", words)
        torch.testing.assert_close(words, ours.encode_text(own), rtol=1e-4, atol=1e-5)
    processor = TransformersEncoder(str(theirs)).preprocess
    assert (processor.size, processor.interpolation, processor.mode) == (32, "bicubic", "shortest")
    back, _ = converted(theirs, "open_clip", name="back")
    assert equal(loaded_by_open_clip(back).state_dict(), clip["expert"])


def test_a_tower_alone_is_a_vision_model_of_transformers(clip, converted):
    output, _ = converted(clip["tower"], "transformers", *encoder_of(clip))
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(output).eval()
    ours = open_clip.create_model(clip["name"]).eval()
    ours.load_state_dict(clip["expert"])
    with torch.no_grad():
        features = model(pixel_values=IMAGES).image_embeds
        torch.testing.assert_close(features, ours.encode_image(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_folder_of_transformers_describes_its_experts(clip, converted, tmp_path):
    whole = spelled_as(clip["expert"], load_file(f"{clip['hub']}/model.safetensors"))
    tower = {n: whole[n] for n in whole if n.startswith("vision_model.")}
    expert = save_checkpoint(tower, tmp_path / "expert.safetensors")
    output, told = converted(expert, "transformers", "--base", clip["hub"])
    model = transformers.AutoModel.from_pretrained(output)
    assert equal({n: t for n, t in model.state_dict().items() if n in tower}, tower)
    assert "text_model.* (" in told
    alone = hub_folder(tower, tmp_path / "alone", TOWER_CONFIG)
    output, _ = converted(expert, "transformers", "--base", alone, name="vision")
    assert equal(open_checkpoint(output), tower)
    model = transformers.CLIPVisionModel.from_pretrained(output).eval()
    own = TransformersEncoder(alone, weights=str(expert))
    with torch.no_grad():
        assert torch.equal(model(pixel_values=IMAGES).pooler_output, own(IMAGES))


def test_a_pickle_and_a_folder_of_open_clip_go_round(clip, converted):
    options = [*encoder_of(clip), "--base", clip["whole"]]
    first, _ = converted(clip["pickle"], "open_clip", *options)
    assert equal(loaded_by_open_clip(first).state_dict(), clip["expert"])
    again, _ = converted(first, "transformers", name="theirs")
    back, _ = converted(again, "open_clip", "--base", first, name="back")
    assert equal(open_checkpoint(back), clip["expert"])
    assert json.loads((back / "open_clip_config.json").read_text())["model_cfg"]["quick_gelu"]


@pytest.fixture
def vit(tmp_path):
    encoder = TimmEncoder(TIMM, options=OPTIONS, image_size=32)
    with torch.no_grad():
        for tensor in encoder.backbone.parameters():
            tensor.add_(torch.randn_like(tensor))
    file = save_checkpoint(encoder.backbone.state_dict(), tmp_path / "vit.safetensors")
    return encoder, file


def test_timm_loads_a_network_by_the_encoders_options(vit, converted):
    encoder, file = vit
    words = [w for k, v in OPTIONS.items() for w in (f"--encoder.options.{k}", v)]
    words = ["--encoder", "TimmEncoder", "--encoder.name", TIMM, *words]
    output, told = converted(file, "timm", *words, "--encoder.image_size", 32)
    model = timm.create_model(f"local-dir:{output}", pretrained=True).eval()
    assert equal(model.state_dict(), encoder.backbone.state_dict())
    with torch.no_grad():
        assert torch.equal(model(IMAGES), encoder(IMAGES))
    assert tuple(model.pretrained_cfg["mean"]) == encoder.preprocess.mean
    assert f"timm.create_model('local-dir:{output}', pretrained=True)" in told
    again = TimmEncoder(f"local-dir:{output}", pretrained=True)
    assert equal(again.backbone.state_dict(), encoder.backbone.state_dict())


def test_a_folder_of_timm_gives_its_classifier(vit, converted, tmp_path):
    _, file = vit
    model = timm.create_model(
        TIMM, num_classes=5, pretrained_cfg_overlay={"input_size": (3, 32, 32)}, **OPTIONS
    )
    timm.models.save_for_hf(model, tmp_path / "base", safe_serialization=True)
    output, told = converted(file, "timm", "--base", tmp_path / "base")
    loaded = timm.create_model(f"local-dir:{output}", pretrained=True).state_dict()
    own = {"head.weight", "head.bias"}
    assert equal({n: t for n, t in loaded.items() if n not in own}, load_file(file))
    assert all(torch.equal(loaded[name], model.state_dict()[name]) for name in own)
    assert "head.* (2)" in told


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert"])
def test_texts_get_their_configuration_and_tokenizer(kind, converted, tmp_path):
    base = network(tmp_path / "base", kind)
    whole = {n: t + 0.1 * torch.randn_like(t) for n, t in base.state_dict().items()}
    state = {n: t for n, t in whole.items() if not n.startswith("pooler.")}
    file = save_checkpoint(state, tmp_path / "merged.safetensors")
    output, _ = converted(file, "transformers", "--base", tmp_path / "base")
    model = transformers.AutoModel.from_pretrained(output)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    tokens = transformers.AutoTokenizer.from_pretrained(output)
    assert tokens("joy")["input_ids"] == [2, 5, 3]


@pytest.mark.parametrize("tied", [True, False])
def test_t5_and_its_tied_embeddings(tied, converted, tmp_path):
    model = t5(tmp_path / "base", tied=tied)
    state = {n: t.detach() + 0.5 for n, t in model.named_parameters()}
    copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    stored = {n: t.detach().clone() for n, t in model.named_parameters()}
    stored |= {name: stored["shared.weight"].clone() for name in copies}  # as the first T5s have
    stored["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(2)
    save_checkpoint(stored, tmp_path / "base" / "model.safetensors")
    file = save_checkpoint(state, tmp_path / "merged.safetensors")
    output, _ = converted(file, "transformers", "--base", tmp_path / "base")
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(output)
    assert equal(dict(loaded.named_parameters()), state)
    assert torch.equal(load_file(output / "model.safetensors")[copies[0]], state["shared.weight"])


def test_plain_files_keep_names_bits_types_and_metadata(clip, converted, tmp_path):
    tensors = {"a": torch.randn(3).bfloat16(), "b.c": torch.arange(4), "d": torch.tensor(-0.0)}
    file = save_checkpoint(tensors, tmp_path / "own.safetensors", metadata={"activation": "gelu"})
    pickle, told = converted(file, "torch", name="own.pt")
    assert equal(torch.load(pickle), tensors)
    assert f"torch.load('{pickle}')" in told
    back, _ = converted(pickle, "safetensors", name="back.safetensors")
    assert equal(load_file(back), tensors)
    again, _ = converted(file, "safetensors", name="again.safetensors")
    assert open_checkpoint(again).metadata["activation"] == "gelu"
    whole, _ = converted(clip["tower"], "torch", "--base", clip["whole"], name="whole.pt")
    assert equal(torch.load(whole), clip["expert"])


@pytest.mark.parametrize("kind", ["fit", "tune"])
def test_the_line_at_the_end_of_a_run_takes_its_network_away(kind, vit, run, tmp_path, capsys):
    """The run folder knows the encoder."""
    encoder, file = vit
    folder = tmp_path / "run"
    (folder / "merged").mkdir(parents=True)
    merged = Path(shutil.copy(file, folder / "merged" / "ties.safetensors"))
    options = {"name": TIMM, "options": OPTIONS, "image_size": 32, "weights": None}
    own = {"encoder": {"class_path": "lightning_merge.models.TimmEncoder", "init_args": options}}
    config = own if kind == "tune" else {"model": {"init_args": own}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    row = CandidateResult("ties", {"films": 0.5}, {"films": 2}, 0.0)
    show(Results(["films"], {"ties": row}, 0, {}), folder, merged, [])
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("to load it: ")]
    command, load = line.removeprefix("to load it: ").split("; then ")
    result = run(*shlex.split(command)[3:])
    assert result.code == 0, result.err
    model = eval(load, {"timm": timm})
    assert equal(model.state_dict(), encoder.backbone.state_dict())


def test_a_part_is_taken_from_the_base_whole_or_not_at_all(run, tmp_path):
    state = network(tmp_path / "base").state_dict()
    half = {n: t for n, t in state.items() if "layer.1." not in n}
    file = save_checkpoint(half, tmp_path / "half.safetensors")
    words = ["--to", "transformers", "--base", tmp_path / "base", "--output", tmp_path / "out"]
    result = run("convert", file, *words)
    assert result.code == 2
    assert "they lack encoder.layer.1." in result.err
    assert not (tmp_path / "out").exists()


def test_half_precision_is_not_rounded_when_it_is_loaded(converted, tmp_path):
    base = network(tmp_path / "base").half()
    base.save_pretrained(tmp_path / "base")
    state = {n: t.float() + 1e-6 for n, t in base.state_dict().items()}
    file = save_checkpoint(state, tmp_path / "merged.safetensors")
    output, _ = converted(file, "transformers", "--base", tmp_path / "base")
    loaded = transformers.AutoModel.from_pretrained(output).state_dict()
    assert equal(loaded, state)


REFUSED = {
    "a tower without its base": (["--to", "open_clip"], "is a visual tower.*give --base"),
    "another library's encoder": (["--to", "timm"], "nothing says which network.*TimmEncoder"),
    "another name": (["--to", "torch"], "name it \\*.pt"),
    "a base that does not fit": (["--to", "open_clip", "--base", "{bert}"], "tensors are missing"),
    "an output that exists": (["--to", "open_clip", "--output", "{bert}"], "exists: give another"),
    "an input as output": (
        ["--to", "transformers", "--base", "{bert}", "--output", "{bert}", "--overwrite", "true"],
        "give another path",
    ),
    "a file of the base as output": (
        [
            "--to",
            "safetensors",
            "--base",
            "{bert}",
            "--output",
            "{bert}/model.safetensors",
            "--overwrite",
            "true",
        ],
        "lies in it: give another path",
    ),
    "a CLIP without a description": (
        ["--to", "transformers", "--base", "{broken}"],
        "no model_cfg with a vision_cfg",
    ),
    "other things in the output": (
        ["--to", "open_clip", "--output", "{full}", "--overwrite", "true"],
        "holds other things than a network",
    ),
    "no such source": (["--to", "open_clip", "--source", "missing.pt"], "missing.pt"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_bad_input_is_one_line_and_writes_nothing(why, clip, run, tmp_path, capsys):
    network(tmp_path / "bert")
    capsys.readouterr()  # of the library
    (tmp_path / "full" / "more").mkdir(parents=True)
    save_checkpoint({"visual.proj": torch.ones(2)}, tmp_path / "broken" / "model.safetensors")
    (tmp_path / "broken" / "open_clip_config.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    words, message = REFUSED[why]
    places = {name: tmp_path / name for name in ("bert", "broken", "full")}
    words = [word.format(**places) for word in words]
    given = ["--source", clip["tower"], "--output", tmp_path / "out", *encoder_of(clip), *words]
    result = run("convert", *given)
    assert result.code == 2
    (line,) = result.err.strip().splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_is_replaced_as_a_whole(clip, converted, run, tmp_path):
    output, _ = converted(clip["tower"], "open_clip", *encoder_of(clip), "--base", clip["whole"])
    (output / "old.txt").touch()
    converted(clip["tower"], "transformers", *encoder_of(clip), "--overwrite", "true")
    assert {f.name for f in output.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_weights_of_the_other_activation_are_refused(clip, run, tmp_path):
    tower = load_file(clip["tower"])
    file = save_checkpoint(tower, tmp_path / "gelu.safetensors", metadata={"activation": "gelu"})
    given = ["--to", "open_clip", *encoder_of(clip), "--base", clip["whole"]]
    result = run("convert", file, *given, "--output", tmp_path / "out")
    assert result.code == 2
    assert "has QuickGELU" in result.err
