"""A holder's path: files in the published forms, tiny but true to their names, end to end."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from PIL import Image
from published import ClassificationHead, publish
from tiny_clips import (
    CONFIG,
    TOWER_CONFIG,
    both,
    hub_folder,
    moved,
    pickled,
    register,
    scripted,
)
from torch.nn import functional as F

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.checkpoint import match_names, open_checkpoint, spelled_as
from lightning_merge.models import OpenClipEncoder, TransformersEncoder
from lightning_merge.models.head_files import load_heads

ROOT = Path(__file__).resolve().parents[2]
TASKS = {"dtd": ["banded", "dotted", "woven"], "svhn": [str(n) for n in range(10)]}
TITLES = {"dtd": "DTD", "svhn": "SVHN"}
BASES = ("hub", "bin", "archive", "pickle")
EXPERTS = ("hub", "pickle")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """One base and an expert per task, in every form; `states` has them as open_clip does."""
    folder = tmp_path_factory.mktemp("published")
    name = register(folder)
    ours, theirs = both(name)
    state = {n: t.half().float() for n, t in ours.state_dict().items()}
    renamed = spelled_as(state, theirs.state_dict())
    files = {
        ("base", "hub"): hub_folder(dict(renamed), folder / "base", CONFIG),
        ("base", "bin"): str(folder / "open_clip_pytorch_model.bin"),
        ("base", "archive"): scripted(name, state, folder / "ViT-B-32.pt"),
        ("base", "pickle"): pickled(name, state, folder / "zeroshot.pt"),
    }
    torch.save(state, files["base", "bin"])
    states = {"base": state}
    for seed, task in enumerate(TASKS, 1):
        expert = moved(state, seed, ("visual.",))
        expert["visual.proj"] = state["visual.proj"]  # frozen, so that both forms say the same
        tower = spelled_as(expert, theirs.state_dict())
        tower = {n: tower[n] for n in tower if n.startswith("vision_model.")}
        states[task] = expert
        files[task, "hub"] = hub_folder(tower, folder / task, TOWER_CONFIG)
        files[task, "pickle"] = pickled(name, expert, folder / TITLES[task] / "finetuned.pt")
    found = type("Zoo", (), {"files": files, "states": states, "name": name, "folder": folder})
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(3)
    for task, classes in TASKS.items():
        for split, count in {"train": 10, "test": 3}.items():
            for label, name in enumerate(classes):
                place = root / task / split / name
                place.mkdir(parents=True)
                for i in range(count):
                    pixels = generator.integers(20 * label, 20 * label + 60, (40, 36, 3))
                    Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    return root


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("forms", [("hub", "hub"), ("pickle", "pickle"), ("pickle", "hub")])
def test_merge_takes_them_mixed(run, zoo, tmp_path, base, forms):
    """The mean of the towers beside the base's text, under the base's names, whatever the forms."""
    output = tmp_path / "merged.safetensors"
    chosen = dict(zip(TASKS, forms, strict=True))
    experts = [w for t, form in chosen.items() for w in (f"--experts.{t}", zoo.files[t, form])]
    files = ["--base", zoo.files["base", base], *experts, "--output", output]
    result = run("merge", *files, "--method", "Average")
    assert result.code == 0, result.err
    merged = open_checkpoint(output)
    assert set(merged) == set(open_checkpoint(zoo.files["base", base]))
    found = spelled_as(merged, zoo.states["base"])
    stored = {name.removeprefix("model."): name for name in found}
    for name, plain in zoo.states["base"].items():
        if base == "pickle" and name.startswith("transformer."):
            assert name not in stored
            continue
        expected = torch.stack([zoo.states[task][name] for task in TASKS]).mean(0)
        tolerance = {"rtol": 1e-6, "atol": 1e-7}
        torch.testing.assert_close(found[stored[name]].float(), expected, **tolerance)
        if not name.startswith("visual."):
            assert torch.equal(found[stored[name]].float(), plain)
    told = "no expert has, so the base's are copied: "
    assert (told in result.out) == (base != "pickle" or forms == ("hub", "hub"))
    if base == "hub" and forms == ("hub", "hub"):
        assert "visual_projection.weight" in result.out
        assert "text_model.* (" in result.out


@pytest.mark.parametrize("method", ["Ties", "TSVM", "LwPTV"])
def test_the_forms_do_not_matter_to_the_bit(run, zoo, tmp_path, method):
    """What the base is stored in names the tensors; what experts are stored in changes nothing."""
    words = ["--method", method] if method != "LwPTV" else ["--method", "Average"]
    words += ["--method.transforms", method] if method == "LwPTV" else []
    for base in ("archive", "hub"):
        made = []
        for forms in (("hub", "hub"), ("pickle", "pickle"), ("pickle", "hub")):
            output = tmp_path / f"{base}-{forms[0]}-{forms[1]}.safetensors"
            chosen = zip(TASKS, forms, strict=True)
            experts = [w for t, form in chosen for w in (f"--experts.{t}", zoo.files[t, form])]
            files = ["--base", zoo.files["base", base], *experts, "--output", output]
            result = run("merge", *files, *words)
            assert result.code == 0, result.err
            made.append(open_checkpoint(output))
        for other in made[1:]:
            assert list(other) == list(made[0])
            assert not [n for n in other if not torch.equal(other[n], made[0][n])]


def test_a_merged_network_loads_into_either_encoder(run, zoo, tmp_path):
    output = tmp_path / "merged.safetensors"
    experts = [w for t in TASKS for w in (f"--experts.{t}", zoo.files[t, "hub"])]
    files = ["--base", zoo.files["base", "hub"], *experts, "--output", output]
    assert run("merge", *files, "--method", "Ties").code == 0
    pictures = torch.randn(2, 3, 32, 32)
    one = OpenClipEncoder(zoo.name, weights=output)(pictures)
    two = TransformersEncoder(zoo.files["base", "hub"], weights=output)(pictures)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", ["hub", "tower"])
def test_the_printed_line_loads_a_folder_of_transformers(run, zoo, tmp_path, base):
    """A whole CLIP or a vision tower: what the line makes has the merged values and no others."""
    place = zoo.files["base", "hub"] if base == "hub" else zoo.files["dtd", "hub"]
    output = tmp_path / "merged.safetensors"
    experts = [w for t in TASKS for w in (f"--experts.{t}", zoo.files[t, "hub"])]
    result = run("merge", "--base", place, *experts, "--output", output, "--method", "Average")
    assert result.code == 0, result.err
    (line,) = [x for x in result.out.splitlines() if x.startswith("to load it: ")]
    command, load = line.removeprefix("to load it: ").split("; then ")
    converted = run(*shlex.split(command)[3:])
    assert converted.code == 0, converted.err
    loaded = eval(load, {"transformers": transformers}).state_dict()
    merged = open_checkpoint(output)
    places = match_names(loaded, merged)
    assert loaded
    assert not [n for n in loaded if not torch.equal(loaded[n], merged[places[n]])]


@pytest.mark.parametrize(
    ("encoder", "base"),
    [("OpenClipEncoder", "hub"), ("TransformersEncoder", "pickle")],
)
def test_an_encoder_of_the_other_library_is_told(run, zoo, images, tmp_path, encoder, base):
    own = {"OpenClipEncoder": "name", "TransformersEncoder": "source"}[encoder]
    value = zoo.name if own == "name" else zoo.files["base", "hub"]
    experts = [w for t in TASKS for w in (f"--experts.{t}", zoo.files[t, base])]
    words = ["--encoder", encoder, f"--encoder.{own}", value, "--data.root", images]
    output = ["--output", tmp_path / "m.safetensors"]
    files = ["--base", zoo.files["base", base], *experts]
    result = run("merge", *files, *output, "--method", "MTies", *words)
    assert result.code == 2
    assert f"encoder={encoder} names its tensors as another library" in result.err
    assert zoo.files["base", base] in result.err


def test_an_expert_without_images_is_told(run, zoo, images, tmp_path):
    names = {"dtd": "dtd", "svnh": "svhn"}
    experts = [
        w for name, t in names.items() for w in (f"--experts.{name}", zoo.files[t, "pickle"])
    ]
    words = ["--encoder", "OpenClipEncoder", "--encoder.name", zoo.name, "--data.root", images]
    files = [
        "--base",
        zoo.files["base", "pickle"],
        *experts,
        "--output",
        tmp_path / "m.safetensors",
    ]
    result = run("merge", *files, "--method", "MTies", *words)
    assert "has no images of svnh" in result.err


def test_a_tower_of_another_size_is_refused(run, zoo, tmp_path):
    state = open_checkpoint(zoo.files["dtd", "hub"])
    cut = {n: t[:16] if n.endswith("patch_embedding.weight") else t for n, t in state.items()}
    wrong = hub_folder(cut, tmp_path / "wrong", TOWER_CONFIG)
    experts = ["--experts.dtd", wrong, "--experts.svhn", zoo.files["svhn", "hub"]]
    output = ["--output", tmp_path / "m.safetensors"]
    result = run("merge", "--base", zoo.files["base", "hub"], *experts, *output, "--method", "Ties")
    assert result.code == 2
    assert "patch_embedding.weight" in result.err
    assert "of another shape" in result.err


@pytest.fixture
def shipped(zoo, images, tmp_path):
    """A shipped config on the tiny files: shipped(NAME, changes of its zoo and encoder)."""

    def make(name: str, encoder: dict, changes: dict) -> list[str]:
        config = yaml.safe_load((ROOT / "configs" / name).read_text(encoding="utf-8"))
        options = config["model"]["init_args"]
        options["encoder"]["init_args"] = encoder
        options["zoo"] |= {"heads": str(tmp_path / "heads.safetensors"), **changes}
        options["zoo"]["text"] |= {"name": zoo.name}
        config["data"] |= {"source": "folders", "root": str(images), "tasks": list(TASKS)}
        config["data"] |= {"coefficient_fraction": "all", "num_workers": 0}
        config["trainer"] |= {"default_root_dir": str(tmp_path / "run"), "max_epochs": 2}
        config["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return ["fit", "--config", str(path)]

    return make


def accuracies(tmp_path) -> dict:
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    return {name: row["accuracy"] for name, row in content["candidates"].items()}


@pytest.fixture
def cached(zoo, tmp_path, monkeypatch):
    """Names of the zoo's folders on the Hub, which its cache has; the Hub itself is not there."""
    for what in ("base", *TASKS):
        repository = tmp_path / "cache" / f"models--me--clip_{what}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("c" * 40)
        shutil.copytree(zoo.files[what, "hub"], repository / "snapshots" / ("c" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub._fetched.cache_clear()
    yield {what: f"me/clip_{what}" for what in ("base", *TASKS)}
    hub._fetched.cache_clear()


@pytest.mark.parametrize("by_name", [False, True])
def test_fusionbench_runs_on_hub_folders(run, shipped, zoo, tmp_path, cached, by_name):
    """Zero-shot heads come from the base's text tower; the table has a row for every candidate."""
    base = cached["base"] if by_name else zoo.files["base", "hub"]
    folders = {task: zoo.files[task, "hub"] for task in TASKS}
    experts = "hf:me/clip_{task}" if by_name else folders
    changes = {"base": base, "experts": experts}
    changes["text"] = {"name": zoo.name, "weights": base}
    arguments = shipped("vit_b32/fusionbench.yaml", {"source": base}, changes)
    result = run(*arguments)
    assert result.code == 0, result.err
    found = accuracies(tmp_path)
    assert {"base", "individual", "sml", "average", "ties"} <= set(found)
    heads = load_heads(tmp_path / "heads.safetensors")
    assert heads["dtd"].classes == tuple(TASKS["dtd"])
    said = open_checkpoint(tmp_path / "heads.safetensors").metadata["prompts/svhn"]
    table = (tmp_path / "run" / "results.md").read_text()
    assert f"- Prompts of the zero-shot heads: {said} (dtd, svhn)." in table
    merged = open_checkpoint(tmp_path / "run" / "merged" / "average.safetensors")
    assert merged.metadata["activation"] == "quick_gelu"
    name = "vision_model.encoder.layers.1.self_attn.q_proj.weight"
    towers = [open_checkpoint(zoo.files[task, "hub"])[name] for task in TASKS]
    torch.testing.assert_close(merged[name], torch.stack(towers).mean(0))
    assert "nothing has changed since" in run(*arguments).out
    config = tmp_path / "evaluate.yaml"
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    options = content["model"]["init_args"]
    weights = cached if by_name else {"base": base, **folders}
    model = {"encoder": options["encoder"], "heads": options["zoo"]["heads"]}
    model["weights"] = {task: weights[task] for task in TASKS}
    content["model"] = {"class_path": "lightning_merge.modules.Evaluate", "init_args": model}
    content["trainer"]["callbacks"] = []
    config.write_text(yaml.safe_dump(content))
    result = run("test", "--config", config)
    assert result.code == 0, result.err
    for task, accuracy in found["individual"].items():
        assert f"test/{task}: {100 * accuracy:.1f} %" in result.out


@torch.no_grad()
def features(zoo, images, task, split):
    """Unit features of a task's expert, and labels, as open_clip itself makes them."""
    network = OpenClipEncoder(zoo.name, weights=zoo.files["base", "bin"])
    visual = {n.removeprefix("visual."): t for n, t in zoo.states[task].items() if "visual." in n}
    network.load(visual)
    places = sorted((images / task / split).glob("*/*.png"))
    pixels = [network.preprocess.transform()(Image.open(place)) for place in places]
    found = F.normalize(network(network.preprocess.finish(torch.stack(pixels))))
    return found, torch.tensor([TASKS[task].index(place.parent.name) for place in places])


@pytest.mark.parametrize("experts", EXPERTS)
def test_published_heads_measure_both_families(run, shipped, zoo, images, tmp_path, experts):
    """Pickles and Hub folders in open_clip's tower are the same networks, with the same heads."""
    expected = {}
    for task, classes in TASKS.items():
        found, labels = features(zoo, images, task, "train")
        means = torch.stack([found[labels == k].mean(0) for k in range(len(classes))])
        weight = 20 * F.normalize(means - means.mean(0))
        publish(ClassificationHead(weight), tmp_path / "heads" / f"head_{TITLES[task]}Val.pt")
        found, labels = features(zoo, images, task, "test")
        expected[task] = ((found @ weight.T).argmax(1) == labels).float().mean().item()
    base = zoo.files["base", "pickle" if experts == "pickle" else "archive"]
    changes = {
        "base": base,
        "experts": {task: zoo.files[task, experts] for task in TASKS},
        "heads": str(tmp_path / "heads" / "head_{task}.pt"),
    }
    encoder = {"name": zoo.name, "weights": base}
    result = run(*shipped("vit_b32/sml.yaml", encoder, changes))
    assert result.code == 0, result.err
    assert result.err.count("assumed to have them in the data's order") == 1  # of 3 textures of 47
    assert accuracies(tmp_path)["individual"] == pytest.approx(expected)
    table = (tmp_path / "run" / "results.md").read_text()
    assert ("family A, the pickles of task_vectors (dtd, svhn)" in table) == (experts == "pickle")
    assert min(expected.values()) > 0.2


@pytest.mark.parametrize(
    ("kind", "base", "experts"),
    [
        ("TransformersEncoder", "hub", "hub"),
        ("TransformersEncoder", "hub", "pickle"),
        ("OpenClipEncoder", "pickle", "hub"),
        ("OpenClipEncoder", "archive", "hub"),
        ("OpenClipEncoder", "bin", "pickle"),
    ],
)
@pytest.mark.parametrize("command", ["MTies", "RegMean", "mergeability"])
def test_what_looks_at_images_takes_them(run, zoo, images, tmp_path, kind, base, experts, command):
    source = zoo.files["base", "hub" if kind == "TransformersEncoder" else base]
    options = {"source": source} if kind == "TransformersEncoder" else {"name": zoo.name}
    if kind == "OpenClipEncoder":
        options["weights"] = source
    words = ["--encoder", kind, *(w for k, v in options.items() for w in (f"--encoder.{k}", v))]
    words += ["--base", zoo.files["base", base], "--data.root", images, "--device", "cpu"]
    words += [w for t in TASKS for w in (f"--experts.{t}", zoo.files[t, experts])]
    if command == "mergeability":
        result = run("mergeability", *words)
    else:
        output = tmp_path / "m.safetensors"
        result = run("merge", *words, "--method", command, "--output", output)
    assert result.code == 0, result.err
