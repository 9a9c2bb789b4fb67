"""Factors and scaled numbers are told from weights, and ordinary networks from both."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from lightning_merge.core.checkpoints.checkpoint import (
    as_checkpoint,
    open_checkpoint,
    save_checkpoint,
    select,
)
from lightning_merge.core.checkpoints.forms import find_factors
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.ignore import taking_part
from lightning_merge.core.vectors.validate import check_experts
from lightning_merge.methods import Average, KnOTS

PEFT = "base_model.model.layers.0.q_proj."
PAIRS = {
    "peft": (f"{PEFT}lora_A.weight", f"{PEFT}lora_B.weight"),
    "peft, named": (f"{PEFT}lora_A.default.weight", f"{PEFT}lora_B.default.weight"),
    "peft, embedding": (f"{PEFT}lora_embedding_A", f"{PEFT}lora_embedding_B.default"),
    "peft, within its network": ("q.base_layer.weight", "q.lora_A.default.weight"),
    "loralib": ("q.lora_A", "q.lora_B"),
    "torchtune": ("layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight"),
    "kohya": ("lora_unet_down_0.lora_down.weight", "lora_unet_down_0.lora_up.weight"),
    "kohya, alpha": ("lora_te_q.lora_up.weight", "lora_te_q.alpha"),
    "diffusers": ("unet.q.lora.down.weight", "unet.q.lora.up.weight"),
    "diffusers, processors": ("a.processor.q_lora.down.weight", "a.processor.q_lora.up.weight"),
    "diffusers, linear layer": ("q.lora_linear_layer.up.weight", "q.lora_linear_layer.down.weight"),
    "x-flux": ("p.qkv_lora1.down.weight", "p.qkv_lora1.up.weight"),
    "LoHa": ("q.hada_w1_b", "q.hada_w2_a.default"),
    "LoKr": ("q.lokr_w2", "q.lokr_w1_a"),
    "VeRA": ("q.vera_lambda_b", "q.vera_lambda_d"),
}
DOWN, UP = "q.lora_A.weight", "q.lora_B.weight"


def pair(names=(DOWN, UP), seed=0, **fixed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(4, 4, generator=generator) for name in names} | fixed


@pytest.mark.parametrize("names", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("method", [Average(), KnOTS()], ids=["Average", "KnOTS"])
def test_factors_are_not_merged_one_by_one(names, method):
    trained = [name for name in names if "base_layer" not in name]
    base = pair(names) | {"norm.weight": torch.ones(2)}
    experts = {task: {**base, **pair(trained, k)} for k, task in enumerate("ab", 1)}
    if len(trained) == 1:
        method(base, experts)
        return
    with pytest.raises(InputError, match="base and experts hold factors") as fault:
        method(base, experts)
    assert "merge_and_unload() in peft" in str(fault.value)
    assert all(name in str(fault.value) for name in trained)


def test_each_expert_with_another_factor():
    base, other = pair(), pair(seed=1)
    with pytest.raises(InputError, match="hold factors"):
        Average()(base, {"a": {**base, UP: other[UP]}, "b": {**base, DOWN: other[DOWN]}})


@pytest.mark.parametrize("names", [p for k, p in PAIRS.items() if "within" not in k])
@pytest.mark.parametrize("trained", [0, 1])
def test_one_trained_factor_of_a_layer_gives_the_mean_of_products(names, trained):
    base = pair(names)
    experts = {t: base | pair([names[trained]], k) for k, t in enumerate("abc", 1)}
    merged = Average()(base, experts)
    down, up = names
    mean = sum(expert[up] @ expert[down] for expert in experts.values()) / 3
    torch.testing.assert_close(merged[up] @ merged[down], mean)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ((f"{PEFT}lora_magnitude_vector", f"{PEFT}lora_B.weight"), "DoRA"),
        (("lora_unet_q.dora_scale", "lora_unet_q.lora_up.weight"), "DoRA"),
        (("q.oft_r.default", "k.weight"), "OFT"),
        (("q.oft_blocks", "k.weight"), "OFT"),
        (("q.boft_R", "k.weight"), "OFT"),
    ],
)
def test_what_is_not_linear_is_refused_by_itself(names, kind):
    base = pair(names)
    changed = base | pair(names[:1], 1)
    with pytest.raises(
        InputError, match=f"factors of weights \\({kind}\\) that differ in {names[0]}"
    ):
        check_experts(base, {"a": changed, "b": base})


def test_scaling_vectors_alone_are_merged():
    """Of (IA)^3: W diag(l) is linear in l."""
    base = {"q.ia3_l": torch.ones(4), "q.weight": torch.randn(3, 4)}
    experts = {task: {**base, "q.ia3_l": torch.rand(4)} for task in "ab"}
    merged = Average()(base, experts)["q.ia3_l"]
    torch.testing.assert_close(merged, (experts["a"]["q.ia3_l"] + experts["b"]["q.ia3_l"]) / 2)


@pytest.mark.parametrize("names", PAIRS.values(), ids=PAIRS)
def test_an_adapter_is_no_expert_and_no_base(names, tmp_path):
    network = {"layers.0.q_proj.weight": torch.ones(4, 4), "norm.weight": torch.ones(4)}
    adapter = open_checkpoint(save_checkpoint(pair(names), tmp_path / "x.safetensors"))
    for base, expert in ((network, adapter), (adapter, network)):
        with pytest.raises(InputError, match=r"x\.safetensors\) holds factors of weights"):
            check_experts(base, {"a": expert}, minimum=1)
    with pytest.raises(InputError, match=r"x\.safetensors: holds factors of weights.*fuse_lora"):
        select(adapter, network)


def test_adapters_within_a_wanted_network(tmp_path):
    stored = nn.Linear(4, 4).state_dict() | {"lora_A": torch.ones(1), "lora_B": torch.ones(1)}
    with pytest.raises(InputError, match="factors of weights"):
        select(stored, ["weight", "bias"])
    other = {f"net.{n}": t for n, t in nn.Linear(4, 4).state_dict().items()}
    found = select(other | {"text.q.lora_A": torch.ones(1)}, ["weight", "bias"])
    assert list(found) == ["weight", "bias"]


def test_a_peft_folder_of_another_kind(tmp_path):
    save_checkpoint({"prompt_embeddings": torch.ones(3)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    network = {"q.weight": torch.ones(4, 4)}
    with pytest.raises(InputError, match=r"\(peft\), such as prompt_embeddings"):
        check_experts(network, {"a": open_checkpoint(tmp_path)}, minimum=1)


def pruned(seed):
    layer = nn.Linear(4, 3)
    torch.manual_seed(seed)
    nn.init.normal_(layer.weight)
    return prune.l1_unstructured(layer, "weight", 0.5)


def test_masks_of_pruning_and_what_they_mask_are_not_merged_apart():
    base, a, b = (pruned(seed) for seed in range(3))
    with pytest.raises(InputError, match=r"\(pruning\).*weight_orig, weight_mask.*prune\.remove"):
        Average()(base.state_dict(), {"a": a.state_dict(), "b": b.state_dict()})
    plain = {name: tensor for name, tensor in nn.Linear(4, 3).state_dict().items()}
    with pytest.raises(InputError, match=r"expert 'a' holds factors of weights \(pruning\)"):
        Average()(plain, {"a": a.state_dict()})
    same = {
        task: {**m.state_dict(), "weight_mask": base.weight_mask}
        for task, m in zip("ab", (a, b), strict=True)
    }
    merged = Average()(base.state_dict(), same)
    mean = (a.weight_orig + b.weight_orig) / 2 * base.weight_mask
    torch.testing.assert_close(merged["weight_orig"] * merged["weight_mask"], mean)


def test_ordinary_names_are_no_factors():
    levels = ["lora", "flora_A", "lora_Ab", "up", "down", "alpha", "lorax", "loft_r", "soft_s"]
    levels += ["unet.down.0", "lora.weight", "explora.up", "hada", "lokr", "adapter.down.weight"]
    levels += [
        "attn_mask",
        "mask",
        "w_orig",
        "explorer_lora",
        "attn.lora_layer.weight",
        "hadamard_w1",
        "ia3",
    ]
    assert find_factors(f"a.{level}" for level in levels) == {}


F8, HALF, ONE = torch.float8_e4m3fn, torch.float16, torch.ones(1)


@pytest.mark.parametrize(
    ("weight", "scale"),
    [
        ("w", "weight_scale_inv"),
        ("a.weight", "a.weight_scale"),
        ("a.weight", "a.input_scale"),
        ("a.weight", "a.scale_weight"),
        ("a.weight", "a.scale"),
        ("experts.gate_up_proj", "experts.gate_up_proj_scale"),
        ("experts.gate_up_proj", "experts.gate_up_proj_scale_inv"),
        ("a.wq", "a.qscale_wq"),
        ("a.weight", "a.weight._scale"),
        ("a.weight", "a.output_scales"),
    ],
)
def test_float8_with_a_scale_is_refused(weight, scale):
    base = {weight: torch.ones(2, 2).to(F8), scale: ONE, "b": ONE}
    for model in (base, base | {scale: torch.ones(1).to(HALF)}):
        with pytest.raises(InputError, match=rf"'{weight}' is quantised \(float8_e4m3fn.*{scale}"):
            check_experts(model, {"a": model, "c": model})
        with pytest.raises(InputError, match="dequantise"):
            select(model, [weight])
        for ignore in ([], [scale]):  # without its scale it is no better
            with pytest.raises(InputError, match="is quantised"):
                taking_part({"base": as_checkpoint(model), "a": as_checkpoint(model)}, ignore)
    kept = taking_part({"base": as_checkpoint(base), "a": as_checkpoint(base)}, [weight])
    assert list(kept["base"]) == list(kept["a"]) == [scale, "b"]
    with pytest.raises(InputError, match=r"expert 'a': .* is quantised"):
        check_experts({n: t.float() for n, t in base.items()}, {"a": base}, minimum=1)


def test_float8_without_a_scale_is_merged():
    names = ["norm.weight", "logit_scale", "norm.bias", "layer_scale.gamma", "a.weight", "b.scale"]
    base = {name: torch.ones(2).to(F8) for name in names}
    base |= {"positional_embedding": torch.ones(2).to(F8), "logit_scale": ONE}
    check_experts(base, {"a": base, "b": base})


@pytest.mark.parametrize("kind", ["float8_e8m0fnu", "float4_e2m1fn_x2"])
def test_packed_numbers_are_refused(kind):
    if not hasattr(torch, kind):
        pytest.skip(f"torch has no {kind}")
    base = {"w": torch.ones(2, dtype=torch.uint8).view(getattr(torch, kind)), "b": ONE}
    with pytest.raises(InputError, match=rf"base: 'w' is quantised \({kind}\)"):
        check_experts(base, {"a": base}, minimum=1)
