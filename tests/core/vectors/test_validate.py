import pytest
import torch
from torch import nn

from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.validate import check_experts


def network(**changes):
    state = {
        "embed.weight": torch.ones(4, 2),
        "head.weight": torch.zeros(3, 2),
        "head.count": torch.tensor(1),
    }
    return {name: t for name, t in {**state, **changes}.items() if t is not None}


def message(base, experts, **options):
    with pytest.raises(InputError) as fault:
        check_experts(base, experts, **options)
    return str(fault.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_good_experts_pass(dtype, tmp_path):
    expert = {n: t.to(dtype) if t.is_floating_point() else t for n, t in network().items()}
    stored = open_checkpoint(save_checkpoint(expert, tmp_path / "x.safetensors"))
    check_experts(network(), {"a": expert, "b": stored})
    check_experts(network(), {"a": expert}, minimum=1)
    largest = torch.full((4, 2), torch.finfo(dtype).max, dtype=dtype)  # its sum overflows
    check_experts(network(), {"a": network(**{"embed.weight": largest}), "b": network()})


@pytest.mark.parametrize(
    ("base", "experts", "words"),
    [
        (network(), [network()], "experts is a list: give a mapping {task: weights}"),
        (nn.Linear(2, 2), {"a": network()}, "base is a Linear"),
        (network(), {"a": nn.Linear(2, 2)}, "expert 'a' is a Linear"),
        ({"a": network()}, network(), "base: 'a' is a dict, not a tensor"),
        (network(), {"a": {"head.weight": [1.0]}}, "expert 'a': 'head.weight' is a list"),
    ],
    ids=["list", "module", "expert module", "swapped", "numbers"],
)
def test_other_kinds_of_things_are_named(base, experts, words):
    text = message(base, experts, minimum=1)
    assert words in text
    assert len(text) < 200


def test_all_problems_at_once(tmp_path):
    torch.save(network(**{"head.weight": torch.zeros(5, 2)}), tmp_path / "cars.pt")
    text = message(
        network(),
        {
            "sun": network(**{"head.weight": None, "surplus": torch.ones(1)}),
            "cars": open_checkpoint(tmp_path / "cars.pt"),
            "mnist": network(**{"embed.weight": torch.ones(4, 2, dtype=torch.int32)}),
            "dtd": network(**{"embed.weight": torch.tensor([[1.0, torch.nan]] * 4)}),
            "svhn": network(),
        },
    )
    assert "5 problems" in text
    assert "expert 'sun': 1 missing, 1 not in the base" in text
    assert "missing: head.weight" in text
    assert "not in the base: surplus" in text
    assert "head.weight: [5, 2], in the base [3, 2]" in text
    assert "embed.weight: torch.int32, in the base torch.float32" in text
    assert "NaN or infinite: embed.weight: 4 of 8 values" in text
    assert "svhn" not in text


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.complex64])
def test_not_finite(value, dtype):
    weight = torch.zeros(4, 2, dtype=dtype)
    weight[3, 1] = value
    sick = network(**{"embed.weight": weight})
    healthy = network(**{"embed.weight": torch.zeros(4, 2, dtype=dtype)})
    text = message(healthy, {"a": sick, "b": healthy})
    assert "NaN or infinite: embed.weight: 1 of 8 values" in text.partition("expert 'a'")[2]
    assert "base: 1 NaN or infinite" in message(sick, {"a": healthy, "b": healthy})
    if dtype.is_floating_point:  # others are compared all the same
        check_experts(sick, {"a": sick, "b": healthy}, finite=False)


def test_infinities_that_cancel():
    weight = torch.tensor([torch.inf, -torch.inf, 0.0, 0.0]).reshape(4, 1).expand(4, 2)
    assert "4 of 8" in message(network(), {"a": network(**{"embed.weight": weight})}, minimum=1)


def test_ties():
    shared = torch.ones(4, 2)
    tied = network(**{"embed.weight": shared, "out.weight": shared})
    loose = network(**{"out.weight": torch.full((4, 2), 2.0)})
    copied = network(**{"out.weight": torch.ones(4, 2)})
    assert "tied in the base but not here: embed.weight = out.weight" in message(
        tied, {"a": loose, "b": tied}
    )
    assert "tied here but not in the base: embed.weight = out.weight" in message(
        loose, {"a": loose, "b": tied}
    )
    check_experts(tied, {"a": copied, "b": tied})  # equal values, as a file of safetensors holds
    check_experts(copied, {"a": copied, "b": tied})


@pytest.mark.parametrize(
    ("experts", "wanted"),
    [
        ({}, "experts: none given, but at least 2"),
        ({"a": network()}, "experts: 'a' given, but at least 2"),
        ({"a": network(), "": network()}, "'' is not a name"),
        ({"a": network(), None: network()}, "None is not a name"),
    ],
)
def test_number_and_names(experts, wanted):
    assert wanted in message(network(), experts)


def test_empty_base():
    assert "base holds no tensors" in message({}, {"a": network(), "b": network()})


def test_thousands_of_problems_stay_readable():
    base = {f"blocks.{i}.weight": torch.ones(1) for i in range(1000)}
    other = {f"layers.{i}.weight": torch.ones(1) for i in range(1000)}
    text = message(base, {f"task{k}": other for k in range(12)})
    assert "24000 problems" in text
    assert text.count("1000 missing, 1000 not in the base") == 12
    assert "... and 995 more" in text
    assert len(text.splitlines()) < 200


KINDS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint64]


@pytest.mark.parametrize("dtype", [*KINDS, torch.bool, torch.complex64, torch.complex128])
@pytest.mark.parametrize("stored", [False, True], ids=["memory", "file"])
def test_what_is_copied_from_the_base_must_be_the_same(dtype, stored, tmp_path):
    codes = torch.arange(10_000).remainder(2).to(dtype)
    other = codes.clone()
    other[-1] = 1 - int(codes[-1].real)
    base, expert = network(codes=codes), network(codes=other)
    same = network(codes=codes.clone())
    if stored:
        torch.save(expert, tmp_path / "x.pt")
        expert = open_checkpoint(tmp_path / "x.pt")
    check_experts(base, {"a": same, "b": same})
    for finite in (True, False):
        text = message(base, {"a": same, "b": expert}, finite=finite)
        assert "expert 'b': 1 not merged but changed" in text
        assert f"not merged but changed: codes: {dtype}" in text
        assert "dequantise" in text
        assert text.endswith("leave tensors out of the merge: --ignore '[codes]'")


def test_integers_of_two_types_are_compared_by_value():
    base = network(index=torch.tensor([1, 300], dtype=torch.int16))
    for dtype in (torch.int32, torch.int64):
        same = network(index=torch.tensor([1, 300], dtype=dtype))
        check_experts(base, {"a": same, "b": base})
    wrapped = network(index=torch.tensor([1, 300 - 256], dtype=torch.int8))
    assert "not merged but changed: index: torch.int8" in message(base, {"a": wrapped, "b": base})


def test_counts_of_batches_may_differ():
    norm = nn.BatchNorm1d(2)
    trained = {**norm.state_dict(), "num_batches_tracked": torch.tensor(9)}
    check_experts(norm.state_dict(), {"a": trained, "b": norm.state_dict()})


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2])
def test_what_is_not_finite_may_be_the_same_everywhere(value, dtype):
    mask = torch.zeros(3, 3)
    mask[0, 1:] = value
    base = network(mask=mask.to(dtype))
    check_experts(base, {"a": base, "b": network(mask=mask)})
    finite = network(mask=torch.zeros(3, 3))
    text = message(base, {"a": base, "b": finite})
    assert "base: 1 NaN or infinite" in text
    assert "expert 'a': 1 NaN or infinite" in text
    other = mask.clone()
    other[2, 2] = 1.0
    assert "expert 'b': 1 NaN or infinite" in message(base, {"a": base, "b": network(mask=other)})


@pytest.mark.parametrize("stored", [False, True], ids=["memory", "file"])
def test_a_file_of_statistics_is_no_network(stored, tmp_path):
    norm = nn.Sequential(nn.BatchNorm1d(2, affine=False)).state_dict()
    whole = nn.Sequential(nn.BatchNorm1d(2)).state_dict()
    if stored:
        norm = open_checkpoint(save_checkpoint(norm, tmp_path / "x.safetensors"))
    for base, expert, culprit in (
        (norm, norm, "base"),
        (norm, whole, "base"),
        (whole, norm, "'a'"),
    ):
        text = message(base, {"a": expert}, minimum=1)
        assert f"{culprit} holds only BatchNorm statistics (0." in text
    integers = {"index": torch.arange(3), "0.running_mean": torch.ones(2)}
    assert "no floating-point weights" in message(integers, {"a": integers}, minimum=1)
