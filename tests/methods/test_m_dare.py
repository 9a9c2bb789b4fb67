"""M-DARE: DARE where ratios are even, the rows that M-TIES would trim where they are not."""

import pytest
import torch
from tiny_networks import zoo_of

from lightning_merge.core.errors import InputError
from lightning_merge.methods import Dare, MTies, Resources, TaskArithmetic
from lightning_merge.methods.m_dare import MDare


def test_even_ratios_are_dare_before_task_arithmetic(base, make_experts, resources):
    experts = make_experts(4)
    merged = MDare(keep=0.75, spread=0.0, scale=0.5, seed=3)(base, experts, **resources)
    want = TaskArithmetic(scale=0.5, transforms=[Dare(drop=0.25, seed=3)])(base, experts)
    for name, tensor in want.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)


def test_all_kept_is_task_arithmetic(base, make_experts, resources):
    experts = make_experts(3)
    merged = MDare(keep=1.0, spread=0.0)(base, experts, **resources)
    for name, tensor in TaskArithmetic(scale=0.3)(base, experts).items():
        torch.testing.assert_close(merged[name], tensor)


@pytest.mark.parametrize("layer_inputs", ["base", "merged"])
def test_rows_are_ranked_as_by_m_ties(layer_inputs, base, make_experts, resources):
    options = {"keep": 0.9, "spread": 0.8, "layer_inputs": layer_inputs}
    call = (base, make_experts(3))
    dare = MDare(**options).analyse(*call, Resources(**resources))
    ties = MTies(**options).analyse(*call, Resources(**resources))
    assert list(dare.keep_ratios) == list(ties.keep_ratios) == ["fc1.weight", "fc2.weight"]
    if layer_inputs == "base":  # otherwise the merged prefix is another one
        assert all(torch.equal(r, ties.keep_ratios[n]) for n, r in dare.keep_ratios.items())


def test_filters_of_convolutions_are_ranked_as_by_m_ties():
    model, base, experts = zoo_of("mini_resnet", 3)
    options = {"keep": 0.9, "spread": 0.8, "layer_inputs": "base"}
    data = {"model": model, "batches": torch.randn(5, 3, 16, 16)}
    dare = MDare(**options).analyse(base, experts, Resources(**data))
    ties = MTies(**options).analyse(base, experts, Resources(**data))
    assert all(torch.equal(r, ties.keep_ratios[n]) for n, r in dare.keep_ratios.items())
    plain = MDare(**options | {"spread": 0.0}).analyse(base, experts, Resources(**data))
    for name, tensor in dare.merged.items():
        same = torch.equal(tensor, plain.merged[name])
        assert same == (name not in dare.keep_ratios), name
    whole = MDare(keep=1.0, spread=0.0)(base, experts, **data)
    for name, tensor in TaskArithmetic(scale=0.3)(base, experts).items():
        torch.testing.assert_close(whole[name], tensor)


def test_entries_are_kept_with_their_rows_probability_and_rescaled(base, net, resources):
    """Expert number k changes nothing but fc1, by 1 everywhere: what is kept counts itself."""
    experts = {f"t{k}": base | {"fc1.weight": base["fc1.weight"] + 1} for k in range(400)}
    data = {"model": net, "batches": torch.cat([*resources["batches"].values()])}
    analysis = MDare(keep=0.9, spread=0.8, scale=1 / 400).analyse(base, experts, Resources(**data))
    update = analysis.merged["fc1.weight"] - base["fc1.weight"]
    ratios = analysis.keep_ratios["fc1.weight"]
    assert ratios.min() == pytest.approx(0.1)
    # Unbiased, with the variance (1 - p) / p of each of 400 x 10 entries that a row has.
    deviation = ((1 - ratios) / ratios / 4000).sqrt()
    assert ((update.mean(1) - 1).abs() < 5 * deviation).all()
    values = update * 400 * ratios[:, None]  # how many experts have kept an entry
    torch.testing.assert_close(values, values.round(), rtol=0, atol=0.01)


def test_a_row_of_probability_zero_is_dropped(base, make_experts, resources):
    analysis = MDare(keep=0.5, spread=0.5).analyse(base, make_experts(3), Resources(**resources))
    dropped = analysis.keep_ratios["fc1.weight"] == 0
    assert dropped.sum() == 1
    changed = (analysis.merged["fc1.weight"] != base["fc1.weight"]).any(1)
    assert not changed[dropped].any()
    assert changed.sum() > len(changed) / 2


@pytest.mark.parametrize(
    "options", [{"keep": 1.2}, {"spread": 0.9}, {"scale": float("nan")}, {"node_order": "x"}]
)
def test_bad_options_name_the_argument(options):
    with pytest.raises(InputError, match=next(iter(options))):
        MDare(**options)


def test_missing_resources_name_the_method(base, make_experts):
    with pytest.raises(InputError, match="M-DARE"):
        MDare()(base, make_experts(2))
