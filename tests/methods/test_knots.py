"""KnOTS: parity, and the same as TIES where the shared basis is known."""

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.elect import disjoint_merge, elect_signs
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.methods.average import Average
from lightning_merge.methods.knots import KnOTS, _thresholds
from lightning_merge.methods.ties import Ties


@pytest.mark.shared
def test_published(zoo, expected):
    base, experts, _ = zoo
    want = expected("knots_ties")
    chosen = {task: {name: e[name] for name in want} for task, e in experts.items()}
    merged = KnOTS()({name: base[name] for name in want}, chosen)
    for name, tensor in want.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("combine", ["mean", "sum"])
@pytest.mark.parametrize("shapes", [{"a": (6, 8), "b": (30, 4)}, {"a": (5, 2, 2, 2), "b": (3, 9)}])
def test_the_formula(combine, shapes):
    generator = torch.Generator().manual_seed(0)
    base = {n: torch.zeros(s) for n, s in shapes.items()}
    experts = {
        f"t{k}": {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
        for k in range(3)
    }
    bases, parts = {}, []
    for n in shapes:
        taus = [e[n].flatten(1) for e in experts.values()]
        u, s, v = torch.linalg.svd(torch.cat(taus, 1), full_matrices=False)
        bases[n] = u
        parts.append(torch.stack((s[:, None] * v).chunk(3, dim=1)).flatten(1))
    together = torch.cat(parts, 1)
    count = together.shape[1] - int(0.4 * together.shape[1])
    reach = together.abs().sort(dim=1).values[:, count - 1, None]
    merged = KnOTS(density=0.4, scale=0.9, combine=combine)(base, experts)
    for (n, u), part in zip(bases.items(), parts, strict=True):
        kept = torch.where(part.abs() >= reach, part, 0.0)
        update = disjoint_merge(kept, elect_signs(kept), combine).view(u.shape[1], -1)
        torch.testing.assert_close(merged[n].flatten(1), 0.9 * u @ update, rtol=1e-4, atol=1e-5)


def test_disjoint_rows_are_a_basis_of_their_own():
    """Where experts change one row each, that row is the direction and TIES finds the same."""
    base = {"w": torch.zeros(3, 7)}
    experts = {str(k): {"w": torch.zeros(3, 7)} for k in range(3)}
    for k, expert in enumerate(experts.values()):
        expert["w"][k] = torch.randn(7) * (k + 1)
    merged = KnOTS(scale=1.0)(base, experts)
    torch.testing.assert_close(merged, Ties()(base, experts), rtol=1e-5, atol=1e-6)


def test_all_kept_and_agreeing_is_the_average(base, make_experts):
    experts = {k: make_experts(1)["task0"] for k in "abc"}
    merged = KnOTS(density=1.0, scale=1.0)(base, experts)
    for name, want in Average()(base, experts).items():
        torch.testing.assert_close(merged[name], want, rtol=1e-5, atol=1e-6)


def test_nothing_kept_leaves_the_matrices(base, make_experts):
    merged = KnOTS(density=0.0)(base, make_experts(2))
    assert torch.equal(merged["fc1.weight"], base["fc1.weight"])
    assert not torch.equal(merged["fc1.bias"], base["fc1.bias"])


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_bounds_that_need_no_search_lie_beside_the_coordinates(density, base, make_experts):
    vectors = TaskVectors(base, make_experts(2))
    vectors.device = torch.device("meta")  # in place of a GPU
    assert _thresholds(vectors, {}, density).device == vectors.device


@pytest.mark.parametrize("options", [{"density": 1.2}, {"scale": float("nan")}, {"combine": "x"}])
def test_bad_options_name_the_argument(options):
    with pytest.raises(InputError, match=next(iter(options))):
        KnOTS(**options)
