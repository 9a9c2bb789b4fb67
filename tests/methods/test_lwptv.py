"""LwPTV: scores and masks against the reference, bounds of the ratio, ablations."""

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.task_vectors import TaskVectors, flatten_tasks
from lightning_merge.methods import LwPTV


@pytest.mark.shared
@pytest.mark.parametrize(("score", "key"), [("diversity", "score"), ("magnitude", "abs_score")])
def test_scores_and_masks_match_the_reference(score, key, zoo, expected):
    base, experts, _ = zoo
    want, vectors = expected("lwptv_independent"), TaskVectors(base, experts)
    scores = LwPTV(score=score).scores(vectors)
    torch.testing.assert_close(scores, want[key], rtol=0, atol=1e-9)
    if score == "diversity":
        for ratio in (0.3, 0.5, 0.7, 0.9, 0.999):
            transform = LwPTV(prune_ratio=ratio)
            masks = transform.task_masks(scores)
            assert torch.equal(masks, want[f"mask_{ratio}"])
            assert torch.equal(transform.shared_mask(masks), want[f"shared_{ratio}"])


@pytest.mark.parametrize(
    ("ratio", "kept"), [(0.0, 4), (0.1, 3), (0.5, 1), (0.76, 0), (1.0, 0), (3.0, 0)]
)
def test_number_of_kept_layers(ratio, kept):
    scores = torch.tensor([[3.0, 1.0, 2.0, 4.0]], dtype=torch.float64)
    assert LwPTV(prune_ratio=ratio).task_masks(scores).sum() == kept


@pytest.mark.parametrize("shared", [True, False])
def test_masks_are_shared_or_per_task(shared, base, make_experts):
    vectors = TaskVectors(base, make_experts(3))
    transform = LwPTV(prune_ratio=0.8, shared=shared)
    masks = transform.task_masks(transform.scores(vectors))
    masked = transform(vectors)
    for layer, name in enumerate(vectors.names):
        for task in range(3):
            keep = masks[:, layer].any() if shared else masks[task, layer]
            assert torch.equal(masked[name][task], vectors[name][task] * keep)


@pytest.mark.parametrize("score", ["diversity", "magnitude"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("ratio", [0.1, 0.7, 0.95])
def test_parameters_are_ranked_over_the_whole_task_vector(score, shared, ratio, base, make_experts):
    vectors = TaskVectors(base, make_experts(3))
    taus = torch.cat([flatten_tasks(vectors[n]) for n in vectors.names], dim=1)
    scores = (taus - (taus[0] + taus[1] + taus[2]) / 3 if score == "diversity" else taus).abs()
    keep = scores > scores.sort(dim=1).values[:, [int(taus.shape[1] * ratio)]]
    kept = taus * (keep.any(0) if shared else keep)
    masked = LwPTV(ratio, score, shared, granularity="parameter")(vectors)
    got = torch.cat([flatten_tasks(masked[n]) for n in vectors.names], dim=1)
    assert torch.equal(got, kept)


def test_parameters_do_not_depend_on_tiles_or_processes(base, make_experts, monkeypatch):
    prune = LwPTV(granularity="parameter")
    whole = prune(TaskVectors(base, make_experts(3)))
    want = {name: whole[name] for name in whole.names}
    monkeypatch.setattr("lightning_merge.core.vectors.tiles.TILE", 1)
    divided = prune(TaskVectors(base, make_experts(3), jobs=3))
    for name, stack in want.items():
        tiles = [tile.clone() for _, _, tile in divided.tiles(name)]
        assert torch.equal(torch.cat([stack.new_zeros(3, 0), *tiles], 1), flatten_tasks(stack))


@pytest.mark.parametrize("granularity", ["layer", "parameter"])
@pytest.mark.parametrize(("ratio", "kept"), [(0.1, True), (0.7, True), (0.99, True), (1.0, False)])
def test_one_expert_alone_keeps_everything(granularity, ratio, kept, base, make_experts):
    vectors = TaskVectors(base, make_experts(1))
    pruned = LwPTV(ratio, granularity=granularity)(vectors)
    assert all(torch.equal(pruned[n], vectors[n] * kept) for n in vectors.names)
    by_magnitude = LwPTV(ratio, "magnitude", granularity=granularity)(vectors)
    assert not all(torch.equal(by_magnitude[n], vectors[n]) for n in vectors.names)


@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.7, 1.0, 2.0])
def test_layers_of_one_entry_are_parameters(ratio):
    generator = torch.Generator().manual_seed(0)
    base = {f"p{i}": torch.zeros(()) for i in range(30)}
    experts = {f"t{k}": {n: torch.randn((), generator=generator) for n in base} for k in range(3)}
    vectors = TaskVectors(base, experts)
    layers, parameters = (LwPTV(ratio, granularity=g)(vectors) for g in ("layer", "parameter"))
    assert all(torch.equal(layers[n], parameters[n]) for n in base)


@pytest.mark.parametrize(
    "options",
    [{"prune_ratio": -0.1}, {"prune_ratio": float("nan")}, {"score": "x"}, {"granularity": "x"}],
)
def test_bad_options(options):
    with pytest.raises(InputError, match=next(iter(options))):
        LwPTV(**options)
