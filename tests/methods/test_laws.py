"""Algebraic laws that every registered method obeys, alone and behind every transform."""

import pytest
import torch
from counting import Counting, times_read
from tiny_networks import TIED, tied_zoo

from lightning_merge.core.checkpoints.checkpoint import (
    open_checkpoint,
    save_checkpoint,
)
from lightning_merge.core.checkpoints.writer import CheckpointWriter
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.scope import is_merged
from lightning_merge.methods import MergeMethod, Resources, Transform, registered

METHODS = registered(MergeMethod)
TRANSFORMS = registered(Transform)
# Methods that are several in one.
VARIANTS = {
    "LearnedCoefficients": [{"by": by} for by in ("layer", "depth", "statistics")],
    "PCB": [{"variant": variant} for variant in ("vision", "language")],
}
COMBINATIONS = [
    pytest.param((name, options, before), id="-".join([*before, name, *options.values()]))
    for before in ([], *([transform] for transform in TRANSFORMS))
    for name in METHODS
    for options in VARIANTS.get(name, [{}])
]
# Hyperparameters under which one expert merges to itself.
IDENTITIES = {
    "Average": {},
    "Consensus": {"agree": 1, "scale": 1.0},
    "Fisher": {},
    "KnOTS": {"density": 1.0, "scale": 1.0},
    "LiNeS": {"alpha": 1.0, "beta": 0.0},
    "MDare": {"keep": 1.0, "spread": 0.0, "scale": 1.0},
    "ModelStock": {},
    "RegMean": {},
    "RegMeanPlusPlus": {},
    "TSVM": {},
    "TaskArithmetic": {"scale": 1.0},
    "Ties": {"density": 1.0},
    "MTies": {"keep": 1.0, "spread": 0.0},
}
TRANSFORM_IDENTITIES = {
    "AbsolutePruning": {"prune_ratio": 0.0},
    "Dare": {"drop": 0.0},
    "LwPTV": {"prune_ratio": 0.0},
    "MagnitudePruning": {"prune_ratio": 0.0},
    "RandomLayers": {"prune_ratio": 0.0},
    "RandomPruning": {"prune_ratio": 0.0},
    "WiSEFT": {"alpha": 1.0},
}
ALONE = [values for values in COMBINATIONS if not values.values[0][2]]
BEHIND = [v for v in COMBINATIONS if v.values[0][0] == "TaskArithmetic" and v.values[0][2]]
every_method = pytest.mark.parametrize("make", COMBINATIONS, indirect=True)
# What merges one expert, or many, behind transforms as well; all others do so alone.
PLAIN = ("Average", "LearnedCoefficients", "MTies", "TaskArithmetic", "Ties")
every_number = pytest.mark.parametrize(
    ("make", "number"),
    [
        pytest.param(*values.values, number, id=f"{values.id}-{number}")
        for values in COMBINATIONS
        for number in (
            [1, 2, 20] if values.values[0][0] in PLAIN or not values.values[0][2] else [2]
        )
    ],
    indirect=["make"],
)


@pytest.fixture
def make(request, learned_file):
    """Function that makes a method with transforms in front."""
    name, options, before = request.param
    file = {"file": learned_file} if name == "LearnedCoefficients" else {}
    return lambda: METHODS[name](**options, **file, transforms=[TRANSFORMS[t]() for t in before])


def assert_equal(got, want, **tolerance):
    assert list(got) == list(want)
    for name in want:
        torch.testing.assert_close(
            got[name], want[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance
        )


@every_number
def test_copies_of_the_base_merge_to_the_base(make, number, base, resources):
    merged = make()(base, {f"task{k}": base for k in range(number)}, **resources)
    assert_equal(merged, base, rtol=0, atol=1e-6)
    assert all(torch.equal(merged[n], t) for n, t in base.items() if is_merged(n, t.dtype))


@pytest.mark.parametrize("name", IDENTITIES)
@pytest.mark.parametrize("transform", [None, *TRANSFORM_IDENTITIES])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_expert_merges_to_itself(name, transform, dtype, base, make_experts, resources):
    base = {n: t.to(dtype) if t.is_floating_point() else t for n, t in base.items()}
    experts = make_experts(1, base)
    before = [TRANSFORMS[transform](**TRANSFORM_IDENTITIES[transform])] if transform else []
    merged = METHODS[name](**IDENTITIES[name], transforms=before)(base, experts, **resources)
    want = experts["task0"] | {n: t for n, t in base.items() if not t.is_floating_point()}
    assert_equal(merged, want, rtol=0, atol=5e-7)


@every_method
def test_order_of_experts_changes_nothing(make, base, make_experts, resources):
    experts = make_experts(5)
    backwards = dict(reversed(experts.items()))
    merged = make()(base, experts, **resources)
    assert_equal(make()(base, backwards, **resources), merged, rtol=1e-5, atol=1e-6)


@every_number
def test_out_of_core_equals_in_memory_bit_for_bit(
    make, number, base, make_experts, resources, tmp_path, monkeypatch
):
    experts = make_experts(number)
    merged = make()(base, experts, **resources)
    assert all(t.isfinite().all() for t in merged.values())
    stored = {n: open_checkpoint(save_checkpoint(w, tmp_path / n)) for n, w in experts.items()}
    stored_base = open_checkpoint(save_checkpoint(base, tmp_path / "base"))
    for jobs, entries in ((1, 1), (3, 100)):
        monkeypatch.setattr("lightning_merge.core.vectors.tiles.TILE", entries)
        layout = {name: (t.dtype, tuple(t.shape)) for name, t in base.items()}
        with CheckpointWriter(tmp_path / "merged", layout) as sink:
            make().merge_to(sink, stored_base, stored, Resources(**resources), jobs)
        result = open_checkpoint(tmp_path / "merged")
        assert_equal({name: result[name] for name in merged}, merged, rtol=0, atol=0)


@every_method
def test_inputs_are_untouched_and_not_shared(make, base, make_experts, resources):
    experts = make_experts(3)
    mappings = [base, *experts.values(), resources["model"].state_dict()]
    copies = [{n: t.clone() for n, t in mapping.items()} for mapping in mappings]
    merged = make()(base, experts, **resources)
    for mapping, copy in zip(mappings, copies, strict=True):
        assert_equal(mapping, copy, rtol=0, atol=0)
    pointers = {t.data_ptr() for mapping in mappings for t in mapping.values() if t.numel()}
    assert not pointers & {t.data_ptr() for t in merged.values() if t.numel()}


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_merges_in_float32(make, dtype, base, make_experts, resources):
    def cast(weights, to):
        return {n: t.to(to) if t.is_floating_point() else t for n, t in weights.items()}

    half = cast(base, dtype)
    experts = make_experts(3, half)
    exact = make()(
        cast(half, torch.float32),
        {task: cast(w, torch.float32) for task, w in experts.items()},
        **resources,
    )
    assert_equal(make()(half, experts, **resources), cast(exact, dtype), rtol=0, atol=0)


def mixed_types(name):
    kind = {"fc1": torch.float64, "fc2": torch.float16, "stem": torch.float32}
    return kind.get(name.split(".")[0], torch.bfloat16)


@pytest.mark.parametrize("make", ALONE + BEHIND, indirect=True)
@pytest.mark.parametrize("kind", [lambda name: torch.float64, mixed_types], ids=["wide", "mixed"])
def test_types_may_be_wide_and_mixed(make, kind, base, make_experts, resources):
    def cast(weights, kind):
        return {n: t.to(kind(n)) if t.is_floating_point() else t for n, t in weights.items()}

    base = cast(base, kind)
    experts = make_experts(3, base)
    merged = make()(base, experts, **resources)
    assert {n: t.dtype for n, t in merged.items()} == {n: t.dtype for n, t in base.items()}
    other = torch.float32 if kind(".") == torch.float64 else torch.float64
    want = make()(
        cast(base, lambda _: other),
        {task: cast(expert, lambda _: other) for task, expert in experts.items()},
        **resources,
    )
    rounding = 1e-4 if kind(".") == torch.float64 else 2e-2
    assert_equal(merged, cast(want, kind), rtol=rounding, atol=rounding / 10)


@pytest.mark.parametrize("make", ALONE, indirect=True)
@torch.no_grad()
def test_updates_are_new_and_always_the_same(make, base, make_experts, resources):
    method = make()
    vectors = method.task_vectors(base, make_experts(3))
    update = method.plan(vectors, Resources(**resources))
    for name in vectors.names:
        for span in vectors.spans(name):
            first = update(span, vectors.read(span))
            kept = first.clone()
            first.mul_(2)
            assert torch.equal(update(span, vectors.read(span)), kept), name


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("before", [None, "Dare", "RandomPruning"])
def test_tied_weights_stay_tied(name, before, save_learned, resources):
    """In files they are two copies; the model knows."""
    model, base, experts = tied_zoo(3)
    options = {"transforms": [TRANSFORMS[before]()] if before else []}
    if name == "LearnedCoefficients":
        options["file"] = save_learned(list(experts), list(base))
    merged = METHODS[name](**options)(base, experts, **resources | {"model": model})
    assert before or not torch.equal(merged[TIED[0]], base[TIED[0]])
    assert torch.equal(*(merged[tied] for tied in TIED))


@pytest.mark.parametrize("known_from", ["model", "storage"])
def test_tied_weights_stay_tied_out_of_core(known_from, tmp_path):
    model, base, experts = tied_zoo(3)
    if known_from == "storage":
        model, (first, second) = None, TIED
        base, *shared = [w | {second: w[first]} for w in (base, *experts.values())]
        experts = dict(zip(experts, shared, strict=True))
    method = METHODS["TaskArithmetic"](transforms=[TRANSFORMS["Dare"]()])
    layout = {name: (t.dtype, tuple(t.shape)) for name, t in base.items()}
    with CheckpointWriter(tmp_path / "merged", layout) as sink:
        method.merge_to(sink, base, experts, Resources(model), jobs=2)
    result = open_checkpoint(tmp_path / "merged")
    assert torch.equal(*(result[tied] for tied in TIED))
    assert_equal({n: result[n] for n in base}, method(base, experts, model=model), rtol=0, atol=0)


@pytest.mark.parametrize("make", ALONE, indirect=True)
@pytest.mark.parametrize("number", [2, 8])
def test_experts_are_read_as_often_as_is_said(make, number, base, make_experts, resources):
    experts = {task: Counting(expert) for task, expert in make_experts(number).items()}
    make()(base, experts, **resources)
    assert times_read(experts) == make().requirements().readings


@every_method
def test_buffers(make, base, make_experts, resources):
    experts = make_experts(3)
    merged = make()(base, experts, **resources)
    for name in ("steps", "norm.num_batches_tracked"):
        assert torch.equal(merged[name], base[name])
    for name in ("norm.running_mean", "norm.running_var"):
        mean = sum(expert[name] for expert in experts.values()) / 3
        torch.testing.assert_close(merged[name], mean)


@every_method
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_value_names_expert_and_tensor(make, value, base, make_experts, resources):
    experts = make_experts(3)
    experts["task1"]["fc1.weight"][2, 3] = value
    with pytest.raises(InputError, match=r"(?s)(?=.*task1)(?=.*fc1\.weight)"):
        make()(base, experts, **resources)


@every_method
def test_no_expert_is_an_error(make, base, resources):
    with pytest.raises(InputError, match="expert"):
        make()(base, {}, **resources)


@pytest.mark.parametrize(("name", "factor"), [("Average", 1.0), ("TaskArithmetic", 0.3 * 4)])
def test_linear_methods_are_equivariant_to_a_constant(name, factor, base, make_experts, resources):
    experts = make_experts(4)
    shift = {n: torch.full_like(t, 0.25) for n, t in base.items() if is_merged(n, t.dtype)}
    shifted = {k: w | {n: w[n] + s for n, s in shift.items()} for k, w in experts.items()}
    merged = METHODS[name]()(base, experts)
    want = merged | {n: merged[n] + factor * s for n, s in shift.items()}
    assert_equal(METHODS[name]()(base, shifted), want, rtol=1e-5, atol=1e-6)


def test_every_method_says_what_it_is():
    for cls in (*METHODS.values(), *TRANSFORMS.values()):
        assert cls.__doc__, cls
        assert cls.facts.reference, cls
    assert set(IDENTITIES) < set(METHODS)
    assert set(TRANSFORM_IDENTITIES) < set(TRANSFORMS)


@pytest.mark.parametrize("name", ["norm.running_var", "norm.running_mean"])
def test_broken_statistic_names_expert_and_tensor(name, base, make_experts):
    experts = make_experts(3)
    experts["task1"][name][2] = torch.nan
    with pytest.raises(InputError, match=rf"(?s)(?=.*task1)(?=.*{name})"):
        METHODS["Average"]()(base, experts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_result_too_large_for_its_type_is_an_error(dtype, base, make_experts):
    base = {n: t.to(dtype) if t.is_floating_point() else t for n, t in base.items()}
    scale = {torch.float16: 1e7, torch.float32: 1e39}[dtype]
    with pytest.raises(InputError, match="choose a smaller scale"):
        METHODS["TaskArithmetic"](scale=scale)(base, make_experts(2, base))


def test_what_wide_experts_learned_on_a_narrow_base_is_kept(base, make_experts):
    narrow = {n: t.half() if t.is_floating_point() else t for n, t in base.items()}
    experts = {"x": {n: t + 1e-4 if t.is_floating_point() else t for n, t in base.items()}}
    merged = METHODS["TaskArithmetic"](scale=1.0)(narrow, experts)
    assert merged["fc1.weight"].dtype == torch.float32
    torch.testing.assert_close(merged["fc1.weight"], experts["x"]["fc1.weight"], rtol=0, atol=1e-8)


def test_unusable_inputs_of_the_network(base, make_experts, resources):
    with pytest.raises(InputError, match="NaN"):
        METHODS["MTies"]()(
            base, make_experts(2), model=resources["model"], batches=torch.nan * torch.ones(3, 6)
        )


def test_inputs_of_a_wrong_shape(base, make_experts, resources):
    with pytest.raises(InputError, match=r"shape \[n, 7\]"):
        METHODS["MTies"]()(
            base, make_experts(2), model=resources["model"], batches=torch.ones(3, 7)
        )
