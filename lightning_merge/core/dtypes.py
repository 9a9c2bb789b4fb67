"""Number types: which one to accumulate in, and which one holds the values of several others."""

from collections.abc import Iterable
from functools import reduce

import torch

FLOAT8 = frozenset(
    {
        torch.float8_e4m3fn,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2,
        torch.float8_e5m2fnuz,
    }
)
"""8-bit types, which torch does not promote; float16 and bfloat16 hold all their values."""

_NAMES = ("float8_e8m0fnu", "float4_e2m1fn_x2")  # not in every version of torch
PACKED = frozenset(getattr(torch, name) for name in _NAMES if hasattr(torch, name))
"""Types for scales, or for several numbers in one byte; only quantised weights use them."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type to accumulate in: float64 for float64 values, float32 for all others.

    Examples:
        >>> wide_dtype(torch.bfloat16), wide_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.float32 if dtype in FLOAT8 else torch.promote_types(dtype, torch.float32)


def common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the type that holds all values of some floating types and suits their mean.

    The result is never an 8-bit type, whose steps are as large as what experts learn; if there is
    no other, it is bfloat16.

    Examples:
        >>> common_dtype([torch.float16, torch.bfloat16])
        torch.float32
        >>> common_dtype([torch.float8_e5m2])
        torch.bfloat16
    """
    others = [dtype for dtype in dtypes if dtype not in FLOAT8]
    return reduce(torch.promote_types, others) if others else torch.bfloat16
