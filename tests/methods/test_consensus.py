"""Consensus merging: parity with the published masks, the definition, and its limits."""

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.task_vectors import TaskVectors, flatten_tasks
from lightning_merge.methods import TaskArithmetic
from lightning_merge.methods.consensus import Consensus, tall_masks


@pytest.mark.shared
def test_is_what_the_published_code_returns(zoo, expected):
    base, experts, _ = zoo
    want, names = expected("consensus_k2_tall0.4"), sorted(base)
    merged = Consensus(agree=2, tall=0.4, scale=1.0)(base, experts)
    update = torch.cat([(merged[n] - base[n]).flatten() for n in names])
    torch.testing.assert_close(update, want["merged_tv_flat"], rtol=0, atol=1e-6)
    vectors = TaskVectors(base, experts)
    taus = torch.cat([flatten_tasks(vectors[n]) for n in names], dim=1)
    masks = tall_masks(taus, taus.sum(0), torch.full((8,), 0.4))
    assert torch.equal(masks.sum(0) >= 2, want["mask_flat"])


def test_masks_by_hand():
    taus = torch.tensor([[1.0, 0.0, -1.0, 3.0], [1.0, 2.0, 2.0, 0.0]])
    masks = tall_masks(taus, taus.sum(0), torch.tensor([0.4, 0.6]))
    assert masks.tolist() == [[True, False, True, True], [True, True, True, False]]
    masks = tall_masks(taus, taus.sum(0), torch.tensor([1.0, 0.5]))
    assert masks.tolist() == [[False, False, False, True], [True, True, True, False]]


@pytest.mark.parametrize("agree", [1, 2, 3])
def test_keeps_what_enough_tasks_claim(agree, base, make_experts):
    experts = make_experts(3)
    lambdas = {"task0": 0.2, "task1": 0.6, "task2": 1.5}
    merged = Consensus(agree=agree, tall=lambdas, scale=0.5)(base, experts)
    for name in TaskVectors(base, experts).names:
        taus = {task: expert[name] - base[name] for task, expert in experts.items()}
        total = sum(taus.values())
        votes = sum((t.abs() > lambdas[k] * (total - t).abs()).int() for k, t in taus.items())
        want = torch.where(votes >= agree, 0.5 * total, 0.0)
        torch.testing.assert_close(merged[name] - base[name], want, rtol=0, atol=1e-6)


def test_without_agreement_it_is_task_arithmetic(base, make_experts):
    experts = make_experts(4)
    merged, want = Consensus(agree=0)(base, experts), TaskArithmetic()(base, experts)
    assert all(torch.equal(merged[n], want[n]) for n in want)


def test_more_agreement_than_tasks_is_an_error(base, make_experts):
    with pytest.raises(InputError, match="agree=3: there are 2 experts"):
        Consensus(agree=3)(base, make_experts(2))


@pytest.mark.parametrize("agree", [0, 1, 2, 5])
def test_a_single_expert_agrees_with_itself(agree, base, make_experts):
    experts = make_experts(1)
    merged, want = Consensus(agree=agree)(base, experts), TaskArithmetic()(base, experts)
    assert all(torch.equal(merged[n], want[n]) for n in want)


def test_a_task_without_lambda(base, make_experts):
    with pytest.raises(InputError, match=r"tall: no lambda for task1, only for task0"):
        Consensus(tall={"task0": 0.4})(base, make_experts(2))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"agree": -1}, "agree=-1"),
        ({"agree": 1.5}, "agree=1.5"),
        ({"agree": float("inf")}, "agree=inf"),
        ({"tall": -0.1}, "tall=-0.1"),
        ({"tall": {"MNIST": float("nan")}}, r"tall\['MNIST'\]=nan"),
        ({"scale": float("inf")}, "scale=inf"),
    ],
)
def test_bad_options(options, named):
    with pytest.raises(InputError, match=named):
        Consensus(**options)
