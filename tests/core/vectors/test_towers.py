"""Experts that are a part of a CLIP: what takes part, what is the base's, and what is an error."""

import pytest
import torch

from lightning_merge.core.checkpoints.checkpoint import as_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.towers import align, summary
from lightning_merge.core.vectors.validate import check_experts

WIDTH, DIM = 4, 3


def filled(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def block(prefix, names, width=WIDTH):
    return {f"{prefix}{n}": s for n, s in names(width).items()}


def ours(width):
    norms = {f"{n}.{k}": (width,) for n in ("ln_1", "ln_2") for k in ("weight", "bias")}
    attention = {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,)}
    return {**norms, **attention, "attn.out_proj.weight": (width, width)}


def theirs(width):
    norms = {f"layer_norm{n}.{k}": (width,) for n in (1, 2) for k in ("weight", "bias")}
    parts = {f"self_attn.{p}_proj.weight": (width, width) for p in ("q", "k", "v", "out")}
    return {**norms, **parts, **{f"self_attn.{p}_proj.bias": (width,) for p in "qkv"}}


OPEN = {
    "positional_embedding": (5, WIDTH),
    "text_projection": (WIDTH, DIM),
    "logit_scale": (),
    "visual.class_embedding": (WIDTH,),
    "visual.positional_embedding": (2, WIDTH),
    "visual.proj": (WIDTH, DIM),
    "visual.conv1.weight": (WIDTH, 3, 2, 2),
    "visual.ln_pre.weight": (WIDTH,),
    **block("visual.transformer.resblocks.0.", ours),
    **block("transformer.resblocks.0.", ours),
    "token_embedding.weight": (6, WIDTH),
    "ln_final.weight": (WIDTH,),
}
HF = {
    "logit_scale": (),
    "text_model.embeddings.token_embedding.weight": (6, WIDTH),
    "text_model.embeddings.position_embedding.weight": (5, WIDTH),
    **block("text_model.encoder.layers.0.", theirs),
    "text_model.final_layer_norm.weight": (WIDTH,),
    "vision_model.embeddings.class_embedding": (WIDTH,),
    "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, 2, 2),
    "vision_model.embeddings.position_embedding.weight": (2, WIDTH),
    "vision_model.pre_layrnorm.weight": (WIDTH,),
    **block("vision_model.encoder.layers.0.", theirs),
    "visual_projection.weight": (DIM, WIDTH),
    "text_projection.weight": (DIM, WIDTH),
}
BASES = {"open_clip": OPEN, "transformers": HF}
TEXT_TRANSFORMER = {n for n in OPEN if n.startswith("transformer.")}
PARTS = {  # form of an expert -> its names
    "a whole CLIP of open_clip": dict(OPEN),
    "published with task vectors": {n: s for n, s in OPEN.items() if n not in TEXT_TRANSFORMER},
    "a tower of open_clip": {n: s for n, s in OPEN.items() if n.startswith("visual.")},
    "a whole CLIP of transformers": dict(HF),
    "a tower of transformers": {n: s for n, s in HF.items() if n.startswith("vision_model.")},
}


def left_out(base, form):
    """Names of a base that an expert of a form does not have, said once more by hand."""
    text = TEXT_TRANSFORMER if base == "open_clip" else {
        n for n in HF if n.startswith("text_model.encoder.")
    }  # fmt: skip
    vision = {n for n in BASES[base] if n.startswith(("visual.", "vision_model."))}
    projection = set() if base == "open_clip" else {"visual_projection.weight"}
    return {
        "a whole CLIP of open_clip": set(),
        "published with task vectors": text,
        "a tower of open_clip": set(BASES[base]) - vision - projection,
        "a whole CLIP of transformers": set(),
        "a tower of transformers": set(BASES[base]) - (vision - projection),
    }[form]


def bare(name):
    return name.removeprefix("visual.").removeprefix("vision_model.")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    ("form", "renamed"),
    [
        *((form, rename) for form in PARTS for rename in (str, "model.{}".format)),
        *((form, bare) for form in PARTS if form.startswith("a tower")),
    ],
)
def test_what_no_expert_has_is_passed_through(base, form, renamed):
    experts = {
        task: {renamed(name): tensor for name, tensor in filled(PARTS[form], seed).items()}
        for seed, task in enumerate("ab")
    }
    whole = filled(BASES[base], 9)
    found = align(whole, experts)
    assert set(found.passed) == left_out(base, form)
    assert list(found.base) == [name for name in whole if name not in found.passed]
    for expert in found.experts.values():
        assert set(expert) == set(found.base)
    check_experts(found.base, found.experts)
    for name in found.base:
        bases = name == "visual.proj" and form == "a tower of transformers"
        assert torch.equal(found.experts["a"][name], found.experts["b"][name]) == bases


@pytest.mark.parametrize("base", BASES)
def test_what_some_experts_leave_out_is_the_bases_there(base):
    whole = filled(BASES[base], 9)
    forms = ("published with task vectors", "a tower of transformers")
    experts = {form: filled(PARTS[form], seed) for seed, form in enumerate(forms)}
    found = align(whole, experts)
    assert set(found.passed) == left_out(base, forms[0])
    check_experts(found.base, found.experts)
    alone = left_out(base, forms[1]) - left_out(base, forms[0])
    assert alone or base == "open_clip"
    alone |= {"visual.proj"}
    for name in found.base:
        tower = found.experts[forms[1]][name]
        assert torch.equal(tower, whole[name]) == (name in alone)


@pytest.mark.parametrize("base", BASES)
def test_values_go_where_they_belong(base):
    whole = filled(BASES[base], 9)
    expert = filled(PARTS["published with task vectors"], 1)
    found = align(whole, {"a": expert}).experts["a"]
    if base == "open_clip":
        assert all(torch.equal(found[n], t) for n, t in expert.items())
        return
    assert torch.equal(found["visual_projection.weight"], expert["visual.proj"].T)
    place = "vision_model.encoder.layers.0.self_attn"
    rows = expert["visual.transformer.resblocks.0.attn.in_proj_weight"].split(WIDTH)
    for letter, values in zip("qkv", rows, strict=True):
        assert torch.equal(found[f"{place}.{letter}_proj.weight"], values)


@pytest.mark.parametrize(
    ("base", "form", "gone", "named"),
    [
        ("open_clip", "a tower of open_clip", "visual.ln_pre.weight", "visual.conv1.weight"),
        ("open_clip", "a tower of open_clip", "visual.proj", "visual.proj"),
        ("open_clip", "a whole CLIP of open_clip", "ln_final.weight", None),
        ("open_clip", "a whole CLIP of open_clip", "transformer.resblocks.0.ln_1.bias", None),
        ("transformers", "a tower of transformers", "vision_model.pre_layrnorm.weight", None),
        (
            "transformers",
            "a whole CLIP of transformers",
            "text_model.final_layer_norm.weight",
            None,
        ),
    ],
)
def test_what_is_partly_missing_stays_an_error(base, form, gone, named):
    """But a part of one tensor, such as `ln_final`, is missing as a whole."""
    whole, expert = filled(BASES[base], 9), filled(PARTS[form], 1)
    del expert[gone]
    found = align(whole, {"a": expert})
    if gone == "ln_final.weight":
        assert found.passed == [gone]
        return
    with pytest.raises(InputError, match="missing"):
        check_experts(found.base, found.experts, minimum=1)


def test_a_tensor_too_much_stays_an_error():
    expert = {**filled(PARTS["a tower of transformers"], 1), "classifier.weight": torch.ones(2)}
    found = align(filled(HF, 9), {"a": expert})
    with pytest.raises(InputError, match=r"not in the base: classifier\.weight"):
        check_experts(found.base, found.experts, minimum=1)


@pytest.mark.parametrize("in_base", [True, False])
@pytest.mark.parametrize("in_expert", [True, False])
@pytest.mark.parametrize("form", ["a tower of transformers", "published with task vectors"])
def test_position_numbers_are_no_weights(in_base, in_expert, form):
    """Transformers 4 stores them and 5 does not, nor does open_clip."""
    positions = {"vision_model.embeddings.position_ids": torch.arange(2)[None]}
    whole = {**filled(HF, 9), **(positions if in_base else {})}
    expert = {**filled(PARTS[form], 1), **(positions if in_expert else {})}
    found = align(whole, {"a": expert})
    check_experts(found.base, found.experts, minimum=1)
    assert (next(iter(positions)) in found.passed) == (in_base and not in_expert)


@pytest.mark.parametrize(
    "names",
    [
        ["model.embed.weight", "model.layers.0.weight", "lm_head.weight"],
        ["encoder.layers.0.self_attn.q_proj.weight", "decoder.weight"],
    ],
)
def test_other_networks_are_left_alone(names):
    base = filled(dict.fromkeys(names, (2,)), 1)
    expert = filled(dict.fromkeys(names[:-1], (2,)), 2)
    found = align(base, {"a": expert})
    assert not found.passed
    assert set(found.experts["a"]) == set(expert)
    with pytest.raises(InputError, match=f"missing: {names[-1]}"):
        check_experts(found.base, found.experts, minimum=1)


def test_nothing_is_read_to_align():
    class Unread(dict):
        def __getitem__(self, name):
            raise AssertionError("read")

    whole, expert = (
        as_checkpoint(Unread(dict.fromkeys(n))) for n in (HF, PARTS["a tower of transformers"])
    )
    assert set(align(whole, {"a": expert}).experts["a"])


def test_a_summary_counts_what_is_below_a_level():
    names = [n for n in HF if not n.startswith("vision_model.")]
    count = sum(n.startswith("text_model.") for n in names)
    expected = f"logit_scale, text_model.* ({count}), visual_projection.weight, "
    assert summary(names) == expected + "text_projection.weight"
