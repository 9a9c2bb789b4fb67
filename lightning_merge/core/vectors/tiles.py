"""Tiles: runs of entries of a tensor that are processed together."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from lightning_merge.core.errors import InputError

TILE = 2**19
"""Entries of all experts together in one tile: 2 MiB, so that they stay in cache."""


class Span(NamedTuple):
    """The entries [start, stop) of a flattened tensor.

    Examples:
        >>> span = Span("conv1.weight", start=0, stop=64)
        >>> span.stop - span.start
        64
    """

    name: str
    start: int
    stop: int


def spans(name: str, shape: Sequence[int], experts: int) -> Iterator[Span]:
    """Divide a tensor into tiles of about `TILE` / K entries.

    They are whole rows of the matrix [out, rest]. If a single row is larger than a tile, they are
    rows of the last dimension for tensors [a, b, c], such as fused experts, and [1, ...], such as
    positions.

    Args:
        name: The tensor's name.
        shape: Its shape.
        experts: Number of experts that are read together, K.

    Examples:
        >>> [span.stop for span in spans("fc.weight", (1000, 512), experts=2)]
        [262144, 512000]
    """
    size, most = torch.Size(shape).numel(), TILE // experts
    row = max(1, row_size(shape))
    if row > most and (len(shape) == 3 or tuple(shape[:1]) == (1,)):
        row = max(1, shape[-1])
    step = max(1, most // row) * row
    for start in range(0, size, step):
        yield Span(name, start, min(start + step, size))


def row_size(shape: Sequence[int]) -> int:
    """Return the number of entries in a row of the matrix [out, rest]; 1 for a vector.

    Examples:
        >>> row_size((64, 3, 7, 7)), row_size((64,))
        (147, 1)
    """
    return torch.Size(shape[1:]).numel()


def whole_rows(span: Span, shape: Sequence[int], experts: int) -> slice:
    """Return the rows of the matrix [out, rest] that a span holds.

    Args:
        span: Position of the tile.
        shape: The tensor's shape.
        experts: Number of experts that are read together, K.

    Raises:
        InputError: The span ends within a row.

    Examples:
        >>> whole_rows(Span("fc.weight", 20, 40), (10, 5), experts=2)
        slice(4, 8, None)
    """
    row = row_size(shape)
    if span.start % row or span.stop % row:
        raise InputError(
            f"{span.name}: a row of {row} entries of each of {experts} experts exceeds a tile of "
            f"{TILE} entries; merge fewer experts"
        )
    return slice(span.start // row, span.stop // row)
