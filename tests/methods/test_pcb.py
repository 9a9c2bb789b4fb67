"""PCB-Merging: parity with the published code, sorting in float64, and laws of its own."""

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.methods import LwPTV
from lightning_merge.methods.pcb import PCB

PUBLISHED = [
    pytest.param(PCB(), "pcb_vision_ES", id="vision"),
    pytest.param(PCB(variant="language", density=0.1, scale=1.0), "pcb_nlp_r0.1", id="language"),
]


@pytest.mark.shared
@pytest.mark.parametrize(("method", "file"), PUBLISHED)
def test_is_what_the_published_code_returns(method, file, zoo, expected):
    base, experts, _ = zoo
    merged, want = method(base, experts), expected(file)
    assert set(want) == set(base)
    for name, update in want.items():
        torch.testing.assert_close(merged[name] - base[name], update, rtol=0, atol=1e-6)


@pytest.fixture
def wide(make_experts, base):
    """Function of a number K: task vectors [K, d] in float64, and a base and experts of them."""

    def make(number):
        wide_base = {n: t.double() for n, t in base.items() if n.startswith(("stem", "fc", "head"))}
        experts = make_experts(number, wide_base)
        vectors = [torch.cat([(e[n] - t).flatten() for n, t in wide_base.items()])
                   for e in experts.values()]  # fmt: skip
        return torch.stack(vectors), wide_base, experts

    return make


def by_sorting(taus, density, variant, clip, rescale):
    """The update at scale 1, from the definitions."""
    number, size = taus.shape
    ordered = taus.abs().sort(dim=1).values
    low, high = ordered[:, [int(size * clip)]], ordered[:, [int(size * (1 - clip) - 1)]]
    clipped = taus.sign() * taus.abs().clamp(low, high)
    unit = (clipped.abs() - low) / (high - low)
    if variant == "vision":
        signed = taus.sign() * unit
        agreement = torch.tanh(torch.einsum("kd,jd->kjd", signed, signed)).sum(1)
    else:
        agreement = torch.tanh(taus * taus.sum(0))
    scores = torch.exp(number * unit**2) * agreement
    floor = scores.sort(dim=1).values[:, [int(size * (1 - density))]]
    if rescale:
        weights = (scores.clamp(floor) - floor) / (scores.amax(1, keepdim=True) - floor)
    else:
        weights = torch.where(scores >= floor, scores, 0).clamp(0)
    return (weights * clipped).sum(0) / weights.sum(0).clamp(1e-300)


@pytest.mark.parametrize("variant", ["vision", "language"])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize(
    ("density", "clip", "number"), [(0.05, 0.01, 3), (0.5, 0.1, 1), (0.999, 0.0, 4)]
)
def test_is_what_sorting_gives(variant, rescale, density, clip, number, wide):
    taus, base, experts = wide(number)
    method = PCB(density=density, scale=0.5, variant=variant, clip=clip, rescale=rescale)
    merged = method(base, experts)
    update = torch.cat([(merged[n] - t).flatten() for n, t in base.items()])
    want = 0.5 * by_sorting(taus, density, variant, clip, rescale)
    assert 0 < (want != 0).sum() <= taus.numel()
    torch.testing.assert_close(update, want, rtol=0, atol=1e-12)


def test_doubling_the_task_vectors_doubles_the_update(base, make_experts):
    base = {n: torch.zeros_like(t) for n, t in base.items() if t.is_floating_point()}
    experts = make_experts(3, base)
    doubled = {task: {n: 2 * t for n, t in e.items()} for task, e in experts.items()}
    once, twice = PCB()(base, experts), PCB()(base, doubled)
    parameters = [n for n in base if "running" not in n]
    assert any(once[n].any() for n in parameters)
    assert all(torch.equal(twice[n], 2 * once[n]) for n in parameters)


@pytest.mark.parametrize(("number", "variant"), [(1, "vision"), (3, "vision"), (120, "language")])
def test_equal_experts_share_their_clipped_task_vector(number, variant, base, make_experts):
    expert = make_experts(1)["task0"]
    vectors = TaskVectors(base, {"one": expert})
    magnitudes = torch.cat([vectors[n].flatten() for n in vectors.names]).abs().sort().values
    high = magnitudes[int(len(magnitudes) * 0.9 - 1)]
    method = PCB(density=0.2, scale=1.0, variant=variant, clip=0.1)
    merged = method(base, {f"task{k}": expert for k in range(number)})
    for name in vectors.names:
        tau = vectors[name][0]
        want = tau.clamp(-high, high) * (tau.abs() > magnitudes[int(len(magnitudes) * 0.8)])
        torch.testing.assert_close(merged[name] - base[name], want, rtol=0, atol=1e-6)


def test_experts_compete_with_their_masked_task_vectors(base, make_experts):
    experts, mask = make_experts(3), LwPTV(prune_ratio=0.8)
    masked = mask(TaskVectors(base, experts))
    plain = {
        task: base | {n: base[n] + masked[n][k] for n in masked.names}
        for k, task in enumerate(experts)
    }
    got, want = PCB(transforms=[mask])(base, experts), PCB()(base, plain)
    for name in masked.names:
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["vision", "language"])
@pytest.mark.parametrize("number", [1, 2])
def test_equal_highest_scores_weigh_one(variant, number):
    """Half of the magnitudes are the same and largest; fewer than those are asked for."""
    base = {"w": torch.zeros(40)}
    expert = {"w": torch.cat([torch.full((10,), 2.0), torch.full((10,), -2.0), torch.rand(20)])}
    method = PCB(density=0.2, clip=0.0, scale=1.0, variant=variant)
    merged = method(base, {f"task{k}": expert for k in range(number)})["w"]
    assert merged.tolist() == [2.0] * 10 + [-2.0] * 10 + [0.0] * 20


def test_the_one_highest_score_weighs_one():
    expert = {"w": torch.arange(1.0, 101.0)}
    merged = PCB(density=0.001, clip=0.0, scale=1.0)({"w": torch.zeros(100)}, {"a": expert})["w"]
    assert merged.tolist() == [0.0] * 99 + [100.0]


def test_a_copy_of_the_base_does_not_take_part(base, make_experts):
    experts = make_experts(1)
    want = PCB(variant="language")(base, experts)
    merged = PCB(variant="language")(base, experts | {"none": base})
    moved = [n for n in TaskVectors(base, experts).names if not torch.equal(want[n], base[n])]
    assert moved
    for name in moved:
        assert ((merged[name] - base[name]) != 0).any()
        chosen = (want[name] != base[name]) & (merged[name] != base[name])
        torch.testing.assert_close(merged[name][chosen], want[name][chosen])


def test_nothing_is_kept_at_density_zero(base, make_experts):
    merged = PCB(density=0.0)(base, make_experts(3))
    assert all(torch.equal(merged[n], base[n]) for n in TaskVectors(base, {}).names)


def test_weights_without_floating_point_tensors():
    base = {"steps": torch.arange(3)}
    with pytest.raises(InputError, match="no floating-point weights"):
        PCB()(base, {"a": base, "b": base})


@pytest.mark.parametrize(
    "options",
    [{"density": 1.5}, {"clip": 0.6}, {"scale": float("nan")}, {"variant": "audio"}],
)
def test_bad_options(options):
    with pytest.raises(InputError, match=next(iter(options))):
        PCB(**options)
