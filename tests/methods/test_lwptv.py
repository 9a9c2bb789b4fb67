"""LwPTV: scores and masks against the reference, bounds of the ratio, ablations."""

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.core.task_vectors import TaskVectors
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


@pytest.mark.parametrize(
    "options", [{"prune_ratio": -0.1}, {"prune_ratio": float("nan")}, {"score": "x"}]
)
def test_bad_options(options):
    with pytest.raises(InputError, match=next(iter(options))):
        LwPTV(**options)
