"""TSV-M: parity, and what is known of it without the published code."""

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.methods.average import Average
from lightning_merge.methods.tsvm import TSVM, whitened_sum


@pytest.mark.shared
def test_published(zoo, expected):
    base, experts, _ = zoo
    merged = TSVM(convolutions="average")(base, experts)
    for name, want in expected("tsvm_f32").items():
        torch.testing.assert_close(merged[name] - base[name], want, rtol=0, atol=1e-5, msg=name)


def test_one_expert_is_kept_whole():
    matrix = torch.randn(1, 6, 9)
    torch.testing.assert_close(whitened_sum(matrix), matrix[0].double())


def test_tasks_in_orthogonal_directions_are_added():
    matrices = torch.zeros(2, 6, 8)
    matrices[0, :3, :3], matrices[1, 3:, 5:] = torch.randn(3, 3), torch.randn(3, 3)
    torch.testing.assert_close(whitened_sum(matrices), matrices.sum(0).double())


def test_copies_of_one_expert_are_its_largest_triplets():
    matrix = torch.randn(8, 10).double()
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    want = left[:, :2] * values[:2] @ right[:2]
    torch.testing.assert_close(whitened_sum(matrix.expand(4, -1, -1)), want)


def test_more_experts_than_dimensions_keep_one_triplet_each():
    left, right = torch.eye(2), torch.eye(5)
    matrices = torch.stack([torch.outer(left[i % 2], right[i]) for i in range(5)])
    assert whitened_sum(matrices).abs().sum() > 1


def test_convolutions_are_matrices_or_averaged():
    base = {"w": torch.zeros(4, 3, 2, 2)}
    experts = {k: {"w": torch.randn(4, 3, 2, 2)} for k in "ab"}
    flat = {k: {"w": e["w"].flatten(1)} for k, e in experts.items()}
    want = TSVM()({"w": torch.zeros(4, 12)}, flat)["w"].view(4, 3, 2, 2)
    assert torch.equal(TSVM()(base, experts)["w"], want)
    averaged = TSVM(convolutions="average")(base, experts)["w"]
    torch.testing.assert_close(averaged, Average()(base, experts)["w"])


@pytest.mark.parametrize("options", [{"scale": float("nan")}, {"convolutions": "x"}])
def test_bad_options_name_the_argument(options):
    with pytest.raises(InputError, match=next(iter(options))):
        TSVM(**options)
