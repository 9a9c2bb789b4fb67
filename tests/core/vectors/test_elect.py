"""Sign election and disjoint merge against loops over entries."""

import pytest
import torch
from safetensors.torch import load_file

from lightning_merge.core.vectors.elect import disjoint_merge, elect_signs, majority_sign
from lightning_merge.core.vectors.task_vectors import TaskVectors


def merge_by_loop(column, combine, zero_sign):
    mass = sum(column)
    sign = zero_sign if mass == 0 else 1 if mass > 0 else -1
    agreeing = [v for v in column if v * sign > 0]
    return sum(agreeing) / (max(len(agreeing), 1) if combine == "mean" else 1)


@pytest.mark.parametrize("combine", ["mean", "sum"])
@pytest.mark.parametrize("zero_sign", [1.0, -1.0])
@pytest.mark.parametrize("experts", [1, 2, 5])
def test_agrees_with_a_loop_over_entries(combine, zero_sign, experts):
    generator = torch.Generator().manual_seed(experts)
    stack = torch.randint(-2, 3, (experts, 4, 6), generator=generator).float()
    merged = disjoint_merge(stack.clone(), elect_signs(stack, zero_sign), combine)
    for i in range(4):
        for j in range(6):
            want = merge_by_loop(stack[:, i, j].tolist(), combine, zero_sign)
            assert merged[i, j].item() == pytest.approx(want)


@pytest.mark.parametrize(("shift", "sign"), [(0.0, 1.0), (-1.0, -1.0), (1.0, 1.0)])
def test_majority_sign(shift, sign):
    expert = {"a": torch.tensor([1.0, -9.0]), "b": torch.tensor(shift)}
    base = {name: 0 * tensor for name, tensor in expert.items()}
    assert majority_sign(TaskVectors(base, {"x": expert, "y": expert})) == sign


@pytest.mark.shared
def test_matches_the_published_merge_of_trimmed_rows(shared):
    want = load_file(shared / "fixtures" / "expected" / "mties_rowtrim_k0.2_e0.1.safetensors")
    stack = torch.stack([want[str(k)] for k in range(8)])
    merged = disjoint_merge(stack, elect_signs(stack))
    torch.testing.assert_close(merged, want["merged"], rtol=0, atol=1e-6)
