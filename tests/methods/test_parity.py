"""Agreement with what the published implementations return for the reference zoo."""

import pytest
import torch
from torch import nn

from lightning_merge.methods import LwPTV, MTies, TaskArithmetic, Ties

pytestmark = pytest.mark.shared

UPDATES = [
    pytest.param(Ties(), "ties_official_K20_dis-mean", id="ties-mean"),
    pytest.param(Ties(combine="sum"), "ties_official_K20_dis-sum", id="ties-sum"),
    pytest.param(Ties(trim="per_tensor"), "ties_mlossrepo_layerwise_k0.2", id="ties-per-tensor"),
]
PUBLISHED_M_TIES = MTies(layer_inputs="base", reduce="square", activation="gelu_tanh")


def assert_update(merged, base, want, allowed=0):
    """At most `allowed` entries of all tensors differ by more than 1e-6."""
    differs = {n: (merged[n] - base[n] - tv).abs() > 1e-6 for n, tv in want.items()}
    assert len(want) == len(base)
    assert sum(int(d.sum()) for d in differs.values()) <= allowed


def test_task_arithmetic(zoo, expected):
    base, experts, _ = zoo
    merged = TaskArithmetic(scale=0.3)(base, experts)
    for name, want in expected("task_arithmetic_lam0.3").items():
        torch.testing.assert_close(merged[name], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("method", "file"), UPDATES)
def test_ties(method, file, zoo, expected):
    base, experts, _ = zoo
    assert_update(method(base, experts), base, expected(file), allowed=2)


def test_ties_of_another_publication(language_zoo, expected):
    base, experts, _ = language_zoo
    merged = Ties(density=0.2)(base, experts)
    want = expected("mergelm_ties_m0.8")
    assert set(merged) == set(want)
    for name, tensor in want.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_lwptv_with_task_arithmetic(zoo, expected):
    base, experts, _ = zoo
    merged = TaskArithmetic(scale=0.3, transforms=[LwPTV(prune_ratio=0.7)])(base, experts)
    for name, want in expected("lwptv_independent").items():
        if name.startswith("ta0.3."):
            got = merged[name.removeprefix("ta0.3.")]
            torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6)


def test_m_ties_end_to_end(zoo, expected):
    base, experts, images = zoo
    prefix = "model.visual."
    tower = _open_clip_tower()
    tower.load_state_dict({n[len(prefix) :]: t for n, t in base.items() if n.startswith(prefix)})
    merged = PUBLISHED_M_TIES(base, experts, model=tower, batches=images)
    assert_update(merged, base, expected("mties_e2e_k0.2_e0.1"))


def _open_clip_tower() -> nn.Module:
    from open_clip.transformer import QuickGELU, VisionTransformer

    return VisionTransformer(
        image_size=32,
        patch_size=8,
        width=64,
        layers=4,
        heads=4,
        mlp_ratio=4.0,
        output_dim=32,
        act_layer=QuickGELU,
    )
