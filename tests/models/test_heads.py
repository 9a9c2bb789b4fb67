import open_clip
import pytest
import torch
import torch.nn.functional as F

from lightning_merge.core.errors import InputError
from lightning_merge.models import (
    CosineHead,
    LinearHead,
    class_mean_head,
    linear_probe_head,
    load_heads,
    save_heads,
    text_heads,
    zero_shot_head,
    zero_shot_heads,
)

TEMPLATES = ["a photo of a {}.", "a drawing of a {}."]
CLASSES = ["cat", "tree frog", "red car"]


@pytest.fixture
def clusters():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 3
    centres = torch.randn(3, 8, generator=generator) + 3
    return centres[labels] + 0.3 * torch.randn(60, 8, generator=generator), labels


def test_cosine_head_is_its_formula(clusters):
    features, _ = clusters
    weight, centre = F.normalize(torch.randn(4, 8), dim=1), torch.randn(8)
    units = features / features.norm(dim=1, keepdim=True) - centre
    expected = 7 * (units / units.norm(dim=1, keepdim=True)) @ weight.T
    torch.testing.assert_close(CosineHead(weight, 7, centre)(features), expected)


def test_linear_head_is_its_formula(clusters):
    weight, bias = torch.randn(4, 8), torch.randn(4)
    expected = clusters[0] @ weight.T + bias
    torch.testing.assert_close(LinearHead(weight, bias)(clusters[0]), expected)


def test_class_mean_head_by_hand(clusters):
    features, labels = clusters
    units = torch.stack([f / f.norm() for f in features])
    centre = units.mean(0)
    moved = torch.stack([(u - centre) / (u - centre).norm() for u in units])
    rows = torch.stack([moved[labels == c].mean(0) for c in range(3)])
    head = class_mean_head(features, labels, 3)
    torch.testing.assert_close(head.centre, centre)
    torch.testing.assert_close(head.weight.data, rows / rows.norm(dim=1, keepdim=True))
    assert head.scale == 20
    assert (head(features).argmax(1) == labels).float().mean() > 0.95


@pytest.mark.parametrize("classes", [2, 3])
def test_linear_probe_separates_clusters(clusters, classes):
    features, labels = (part[clusters[1] < classes] for part in clusters)
    head = linear_probe_head(features, labels, classes)
    assert head.weight.shape == (classes, 8)
    assert (head(features).argmax(1) == labels).all()


def test_heads_are_born_frozen(clusters):
    heads = [class_mean_head(*clusters, 3), linear_probe_head(*clusters, 3)]
    assert not any(p.requires_grad for head in heads for p in head.parameters())


def test_saved_heads_come_back_bit_for_bit(tmp_path, clusters):
    heads = {
        "b/nested": class_mean_head(*clusters, 3),
        "a.dotted": LinearHead(torch.randn(4, 8), torch.randn(4)),
    }
    loaded = load_heads(save_heads(heads, tmp_path / "heads.safetensors", metadata={"seed": "1"}))
    assert list(loaded) == list(heads)
    for task, head in heads.items():
        assert type(loaded[task]) is type(head)
        assert torch.equal(loaded[task](clusters[0]), head(clusters[0]))
        assert not any(p.requires_grad for p in loaded[task].parameters())


@pytest.mark.parametrize("build", [class_mean_head, linear_probe_head])
@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 0, 2], 3, r"no sample of class \[1\]"),
        ([0, 1, 3], 3, "labels from 0 to 3.*num_classes=3"),
        ([0, 1], 2, r"\[3, 8\] and \[2\]"),
    ],
)
def test_bad_labels(build, labels, classes, message):
    with pytest.raises(InputError, match=message):
        build(torch.randn(3, 8), torch.tensor(labels), classes)


def test_bad_shapes():
    with pytest.raises(InputError, match=r"weight of shape \[3\]"):
        LinearHead(torch.zeros(3))
    with pytest.raises(InputError, match=r"bias of shape \[2\]"):
        LinearHead(torch.zeros(3, 4), torch.zeros(2))
    with pytest.raises(InputError, match=r"centre of shape \[3\]"):
        CosineHead(torch.zeros(3, 4), 1.0, torch.zeros(3))


def test_other_files_hold_no_heads(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"x\.safetensors holds no heads"):
        load_heads(tmp_path / "x.safetensors")


def test_zero_shot_head_is_open_clips():
    model, tokenizer = open_clip.create_model("Tiny").eval(), open_clip.get_tokenizer("Tiny")
    with torch.no_grad():
        model.logit_scale.fill_(3)
        expected = open_clip.build_zero_shot_classifier(model, tokenizer, CLASSES, TEMPLATES)
    head = zero_shot_head(model, tokenizer, CLASSES, TEMPLATES)
    torch.testing.assert_close(head.weight.data, expected.T)
    features = torch.randn(5, 24)
    logits = torch.tensor(3.0).exp() * F.normalize(features, dim=1) @ expected
    torch.testing.assert_close(head(features), logits)
    assert zero_shot_head(model, tokenizer, CLASSES, TEMPLATES, scale=2.0).scale == 2


@pytest.mark.filterwarnings("ignore:name='Tiny.* has .*GELU")
def test_zero_shot_heads_of_all_tasks_take_one_tower(tmp_path, monkeypatch):
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for file in files:
        torch.save(open_clip.create_model("Tiny").state_dict(), file)
    built = []
    create = text_heads.create_clip
    monkeypatch.setattr(
        text_heads, "create_clip", lambda *a, **k: built.append(a) or create(*a, **k)
    )
    tasks = {"one": (CLASSES, TEMPLATES), "two": (CLASSES[:2], TEMPLATES)}
    first, other = (zero_shot_heads(tasks, "Tiny", weights=file) for file in files)
    assert len(built) == 2
    assert list(first) == list(tasks)
    assert torch.equal(first["two"].weight, first["one"].weight[:2])
    assert not torch.equal(first["one"].weight, other["one"].weight)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (([], TEMPLATES), r"class_names=\[\]"),
        ((CLASSES, []), r"templates=\[\]"),
        ((CLASSES, ["a photo"]), r"templates=\['a photo'\].*\{\}"),
        ((["caf\udce9", "b"], ["a {}"]), r"class_names=\['caf\\udce9'\]: names that are not UTF-8"),
    ],
)
def test_bad_prompts(tmp_path, prompts, message):
    with pytest.raises(InputError, match=message):
        zero_shot_heads({"task": prompts}, "Tiny", weights=tmp_path / "not needed yet")


def test_zero_shot_needs_trained_weights():
    with pytest.raises(InputError, match="pretrained=None, weights=None"):
        zero_shot_heads({"task": (CLASSES, TEMPLATES)}, "Tiny")
