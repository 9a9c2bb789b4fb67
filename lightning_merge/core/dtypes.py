"""Types of numbers: in which one sums are taken, and which one holds all that others hold."""

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
"""Types of 8 bits, which torch does not promote; float16 and bfloat16 hold all their values."""

_NAMES = ("float8_e8m0fnu", "float4_e2m1fn_x2")  # not in every version of torch
PACKED = frozenset(getattr(torch, name) for name in _NAMES if hasattr(torch, name))
"""Types of scales, and of several numbers in one byte: of quantised weights alone."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of all sums: float32, or float64 for what is stored so."""
    return torch.float32 if dtype in FLOAT8 else torch.promote_types(dtype, torch.float32)


def common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the type that holds all values of some floating types and is fit for a mean of them.

    That is never a type of 8 bits, whose steps are as large as what experts have learned:
    bfloat16, where there is no other.
    """
    others = [dtype for dtype in dtypes if dtype not in FLOAT8]
    return reduce(torch.promote_types, others) if others else torch.bfloat16
