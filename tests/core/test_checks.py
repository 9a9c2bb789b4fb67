"""One error for arguments out of bounds: what it lets through, and what it says."""

import math

import numpy as np
import pytest

from lightning_merge.core.checks import require_choice, require_finite, require_in
from lightning_merge.core.errors import InputError


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1]", [0, 1, 0.5, np.float32(0.5), np.int64(1)], [-1e-9, 1.1, math.inf]),
        ("(0, 1)", [0.5, 1e-300], [0, 0.0, 1, 1.0]),
        ("[0, 1)", [0, 0.999], [1]),
        ("[-1, inf)", [-1, 1e300], [-2, math.inf]),
        ("[0, inf]", [0, math.inf], [-1, -math.inf]),
        ("(0, inf)", [1e-300], [0, math.inf]),
    ],
)
def test_an_interval_takes_what_lies_in_it(interval, inside, outside):
    for value in inside:
        require_in(interval, scale=value)
    for value in [*outside, math.nan, None, "0.5", True]:
        with pytest.raises(InputError, match=r"^scale="):
            require_in(interval, scale=value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", None, True])
def test_a_finite_number_is_wanted(value):
    require_finite(scale=-3, beta=0.5)
    with pytest.raises(InputError, match=r"^beta="):
        require_finite(scale=1.0, beta=value)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: require_in("[0, 1)", drop=1.5), "drop=1.5 must be in [0, 1)"),
        (lambda: require_in("[1, inf)", "data.", size=0), "data.size=0 must be at least 1"),
        (lambda: require_in("(0, inf)", rate=-1.0), "rate=-1.0 must be above 0"),
        (lambda: require_in("(0, inf)", rate=math.inf), "rate=inf must be in (0, inf)"),
        (
            lambda: require_finite("space.", low=math.nan),
            "space.low=nan must be a finite number, for example 1.0",
        ),
        (
            lambda: require_choice(("mean", "sum"), combine="max"),
            "combine='max': choose one of mean, sum",
        ),
    ],
)
def test_the_error_names_argument_value_and_remedy(check, message):
    with pytest.raises(InputError) as caught:
        check()
    assert str(caught.value) == message
