"""TIES: bounds, densities and the sign of cancelled mass."""

import pytest
import torch

from lightning_merge.core.errors import InputError
from lightning_merge.methods import TaskArithmetic, Ties

ZERO = {"w": torch.zeros(4), "v": torch.zeros(2)}


@pytest.mark.parametrize(
    "options",
    [
        {"density": 1.1},
        {"density": -0.1},
        {"density": float("nan")},
        {"scale": float("inf")},
        {"combine": "max"},
        {"trim": "layer"},
    ],
)
def test_bad_options_name_argument_and_value(options):
    ((argument, value),) = options.items()
    with pytest.raises(InputError, match=f"{argument}=.*{value}"):
        Ties(**options)


def test_bad_scale_of_task_arithmetic():
    with pytest.raises(InputError, match="scale=nan"):
        TaskArithmetic(scale=float("nan"))


@pytest.mark.parametrize("trim", ["global", "per_tensor"])
def test_density_zero_keeps_the_base_and_one_keeps_all(trim, base, make_experts):
    experts = make_experts(1)
    for density, want in ((0.0, base), (1.0, experts["task0"])):
        merged = Ties(density=density, trim=trim)(base, experts)
        torch.testing.assert_close(merged["fc1.weight"], want["fc1.weight"])


@pytest.mark.parametrize(("weight", "sign"), [(-1.0, -1.0), (1.0, 1.0)])
def test_cancelled_mass_takes_the_majority_sign_of_the_whole_vector(weight, sign):
    experts = {
        "a": {"w": torch.tensor([2.0, 3.0, 0.0, weight]), "v": torch.full((2,), weight)},
        "b": {"w": torch.tensor([-2.0, -3.0, 0.0, weight]), "v": torch.full((2,), weight)},
    }
    merged = Ties(density=1.0)(ZERO, experts)
    assert merged["w"].tolist() == [2 * sign, 3 * sign, 0.0, weight]
