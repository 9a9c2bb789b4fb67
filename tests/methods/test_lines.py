"""LiNeS: parity, blocks of real networks, and any method inside."""

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Needs
from lightning_merge.methods import (
    Dare,
    Ensemble,
    LearnedCoefficients,
    LwPTV,
    MTies,
    TaskArithmetic,
    Ties,
)
from lightning_merge.methods.iso import IsoC
from lightning_merge.methods.lines import LiNeS, block_depths
from lightning_merge.methods.m_dare import MDare
from lightning_merge.methods.parts import seeded
from lightning_merge.methods.wise_ft import WiSEFT


@pytest.mark.shared
def test_published(zoo, expected):
    base, experts, _ = zoo
    merged = LiNeS()(base, experts)
    for name, want in expected("lines_sum_beta0.5").items():
        torch.testing.assert_close(merged[name] - base[name], want, rtol=0, atol=1e-6, msg=name)


def resnet():
    from timm import create_model

    return create_model("resnet10t", num_classes=3)


def vit():
    from timm import create_model

    return create_model("vit_tiny_patch16_224", depth=5, num_classes=3)


def clip():
    from transformers import CLIPConfig, CLIPModel

    text = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 1, "vocab_size": 9}
    vision = {"num_hidden_layers": 5, "hidden_size": 8, "num_attention_heads": 1}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision))


@pytest.mark.parametrize(
    ("network", "known"),
    [
        (resnet, {"layer1.0.conv1.weight": 0, "layer2.0.downsample.1.weight": 1 / 3,
                  "layer4.0.bn2.bias": 1, "conv1.0.weight": None, "fc.weight": None}),
        (vit, {"blocks.0.attn.qkv.weight": 0, "blocks.3.mlp.fc2.weight": 0.75,
               "blocks.4.norm1.bias": 1, "patch_embed.proj.weight": None, "norm.weight": None}),
        (clip, {"vision_model.encoder.layers.1.mlp.fc1.weight": 0.25,
                "text_model.encoder.layers.1.mlp.fc1.weight": 1,
                "text_model.embeddings.token_embedding.weight": None}),
    ],
)  # fmt: skip
def test_blocks_of_networks(network, known):
    names = [name for name, _ in network().named_parameters()]
    depths = block_depths(names)
    assert {name: depths.get(name) for name in known} == pytest.approx(known)
    assert set(depths) < set(names)


@pytest.mark.parametrize(
    ("names", "want"),
    [
        (["module.0.blocks.0.w", "module.0.blocks.1.w"], [0, 1]),  # a number that never varies
        (["h.10.a.w", "h.2.a.w", "h.0.a.w"], [1, 0.5, 0]),
        (["h.0.mlp.0.w", "h.0.mlp.1.w", "h.1.mlp.0.w"], [0, 0, 1]),
        (["stem.0.w", "stem.1.w", "s.0.w", "s.1.w", "s.2.w"], [None, None, 0, 0.5, 1]),
        (["encoder.layer_0.ln_1.w", "encoder.layer_1.ln_1.w"], [0, 1]),
        (["fc1.w", "fc2.w", "scale"], [None, None, None]),
    ],
)
def test_blocks_from_names(names, want):
    depths = block_depths(names)
    assert [depths.get(name) for name in names] == want


def blocks(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = ["stem.weight", *(f"blocks.{b}.fc.weight" for b in range(number)), "head.weight"]
    return {name: torch.randn(4, 6, generator=generator) for name in names}


@pytest.mark.parametrize(
    "method", [TaskArithmetic(), Ties(), IsoC()], ids=lambda m: type(m).__name__
)
def test_any_methods_update_is_scaled_by_depth(method):
    base, experts = blocks(3), {str(k): blocks(3, k + 1) for k in range(4)}
    update = {n: t - base[n] for n, t in method(base, experts).items()}
    summed = sum(sum(e[n] - b for e in experts.values()).abs().sum() for n, b in base.items())
    alpha = summed / sum(u.abs().sum() for u in update.values()) / 4
    factors = dict(zip(base, [alpha, alpha, alpha + 0.4, alpha + 0.8, alpha], strict=True))
    merged = LiNeS(method, beta=0.8)(base, experts)
    for name, factor in factors.items():
        torch.testing.assert_close(
            merged[name] - base[name], factor * update[name], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("method", [Ties, IsoC])
def test_default_alpha_undoes_the_methods_scale(method):
    base, experts = blocks(3), {str(k): blocks(3, k + 1) for k in range(4)}
    large, small = (LiNeS(method(scale=scale))(base, experts) for scale in (3.0, 0.1))
    for name in ("stem.weight", "blocks.0.fc.weight"):  # there alpha alone
        torch.testing.assert_close(large[name], small[name], rtol=1e-4, atol=1e-5)


def test_alpha_one_and_beta_zero_change_nothing(base, make_experts, resources):
    experts = make_experts(3)
    merged = LiNeS(MTies(), alpha=1.0, beta=0.0)(base, experts, **resources)
    for name, want in MTies()(base, experts, **resources).items():
        assert torch.equal(merged[name], want), name


def test_transforms_come_before_the_methods_own(base, make_experts):
    experts = make_experts(3)
    inner, outer = WiSEFT(alpha=0.5), LwPTV(prune_ratio=0.5)
    options = {"alpha": 0.7}
    want = LiNeS(TaskArithmetic(transforms=[outer, inner]), **options)(base, experts)
    got = LiNeS(TaskArithmetic(transforms=[inner]), transforms=[outer], **options)(base, experts)
    assert all(torch.equal(got[name], t) for name, t in want.items())
    assert not torch.equal(got["fc1.weight"], LiNeS(**options)(base, experts)["fc1.weight"])


def test_it_is_what_its_method_is():
    method = LiNeS(LiNeS(IsoC()))
    assert method.requirements().whole
    assert LiNeS(MTies()).requirements().needs == Needs.INPUTS
    assert LiNeS().requirements().needs == LiNeS.facts.needs == Needs.NOTHING
    assert "IsoC(scale=1.0" in method.described()


def test_a_method_describes_itself_once(learned_file):
    method = LearnedCoefficients(learned_file)
    assert LiNeS(method).described().count(method.described()) == 1
    assert LiNeS(method).described().count("sha256") == 1


def test_a_network_has_no_update_to_scale():
    with pytest.raises(InputError, match="method=Ensemble"):
        LiNeS(Ensemble())


def test_a_runs_seed_reaches_the_method():
    method = LiNeS(MDare(seed=1), transforms=[Dare(seed=2)])
    assert seeded(method, 5) == LiNeS(MDare(seed=6), transforms=(Dare(seed=7),))


@pytest.mark.parametrize("options", [{"alpha": float("nan")}, {"beta": float("inf")}])
def test_bad_options_name_the_argument(options):
    with pytest.raises(InputError, match=next(iter(options))):
        LiNeS(**options)
