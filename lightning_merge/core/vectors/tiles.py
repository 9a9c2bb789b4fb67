"""Tiles: the runs of entries of a tensor that are worked on at a time."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from lightning_merge.core.errors import InputError

TILE = 2**19
"""Entries of all experts together that are read at a time: 2 MiB, so that they stay in cache."""


class Span(NamedTuple):
    """The entries [start, stop) of a tensor, flattened."""

    name: str
    start: int
    stop: int


def spans(name: str, shape: Sequence[int], experts: int) -> Iterator[Span]:
    """Divide a tensor into tiles of about `TILE` / K entries.

    They are whole rows of the matrix [out, rest]; where one alone is larger than that, of the
    last dimension of tensors [a, b, c], such as fused experts, and [1, ...], such as positions.

    Args:
        name: The tensor's name.
        shape: Its shape.
        experts: Number of experts that are read together, K.
    """
    size, most = torch.Size(shape).numel(), TILE // experts
    row = max(1, row_size(shape))
    if row > most and (len(shape) == 3 or tuple(shape[:1]) == (1,)):
        row = max(1, shape[-1])
    step = max(1, most // row) * row
    for start in range(0, size, step):
        yield Span(name, start, min(start + step, size))


def row_size(shape: Sequence[int]) -> int:
    """Entries of a row of the matrix [out, rest]; 1 of a vector."""
    return torch.Size(shape[1:]).numel()


def whole_rows(span: Span, shape: Sequence[int], experts: int) -> slice:
    """Return the rows of the matrix [out, rest] that a span holds.

    Args:
        span: Where the tile lies.
        shape: The tensor's shape.
        experts: Number of experts that are read together, K.

    Raises:
        InputError: It does not hold whole ones.
    """
    row = row_size(shape)
    if span.start % row or span.stop % row:
        raise InputError(
            f"{span.name}: {TILE} entries at a time do not hold a row of {row} for all "
            f"{experts} experts; merge fewer"
        )
    return slice(span.start // row, span.stop // row)
