"""Singular value decompositions of weight updates, by eigenvalues of their Gram matrices.

The Gram matrix of the shorter side in float64 gives singular vectors in half the time of an SVD in
float32, or less if only a few are wanted, and as accurately for all singular values above
`RANK_TOLERANCE` times the largest. Smaller ones are rounding noise of the stored weights: they
count as zero, so that their arbitrary vectors do not end up in a merged model.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

RANK_TOLERANCE = 1e-5
"""Singular values up to this fraction of the largest one count as zero."""

Convolutions = Literal["matrix", "average"]
"""How a convolution's weight is treated: as a matrix [out, rest], or averaged instead."""


class Triplets(NamedTuple):
    """Non-zero singular values and their vectors, in float64, the largest first.

    Attributes:
        left: Orthonormal columns, [m, r].
        values: Singular values, [r].
        right: Orthonormal columns, [n, r].

    Examples:
        >>> triplets = singular_triplets(torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
        >>> triplets.values, triplets.left.shape
        (tensor([3.], dtype=torch.float64), torch.Size([2, 1]))
    """

    left: Tensor
    values: Tensor
    right: Tensor


def singular_triplets(matrix: Tensor, rank: int | None = None) -> Triplets:
    """Return the largest singular values of a matrix and their vectors.

    Args:
        matrix: [m, n], of any floating type.
        rank: Maximum number of triplets; min(m, n) by default.

    Returns:
        R triplets; fewer than `rank` if the matrix has a lower rank, none if it is zero.

    Examples:
        >>> singular_triplets(torch.diag(torch.tensor([1.0, 4.0, 2.0])), rank=2).values
        tensor([4., 2.], dtype=torch.float64)
    """
    if matrix.shape[0] > matrix.shape[1]:
        flipped = singular_triplets(matrix.mT, rank)
        return Triplets(flipped.right, flipped.values, flipped.left)
    matrix = matrix.double()
    left = _short_basis(matrix)[:, :rank]
    right = matrix.mT @ left
    values = right.norm(dim=0)
    return Triplets(left, values, right / values)


def column_basis(matrix: Tensor) -> Tensor:
    """Return an orthonormal basis of the column space, [m, r] in float64, r <= min(m, n).

    It consists of the left singular vectors of the non-zero singular values.

    Examples:
        >>> basis = column_basis(torch.tensor([[2.0, 4.0], [0.0, 0.0]]))
        >>> basis.abs().flatten().tolist()
        [1.0, 0.0]
    """
    tall = matrix.shape[0] > matrix.shape[1]
    return singular_triplets(matrix).left if tall else _short_basis(matrix.double())


def _short_basis(matrix: Tensor) -> Tensor:
    """Return `column_basis` of a float64 matrix that is at least as wide as tall."""
    eigenvalues, vectors = torch.linalg.eigh(matrix @ matrix.mT)
    values = eigenvalues.flip(0).clamp_(min=0).sqrt_()
    rank = int((values > RANK_TOLERANCE * values[:1]).sum())
    return vectors.flip(1)[:, :rank]


def polar_factor(matrix: Tensor) -> Tensor:
    """Return the nearest matrix with singular values 1, or 0 where they were 0, [m, n] in float64.

    If the matrix has full column rank, the result has orthonormal columns and solves the
    orthogonal Procrustes problem. Unlike U V^T of an SVD it is unique for every matrix.

    Examples:
        >>> polar_factor(torch.tensor([[0.0, 5.0], [2.0, 0.0]])).round(decimals=6)
        tensor([[0., 1.], [1., 0.]], dtype=torch.float64)
    """
    left, _, right = singular_triplets(matrix)
    return left @ right.mT


def as_matrices(
    tile: Tensor, shape: tuple[int, ...], convolutions: Convolutions = "matrix"
) -> Tensor | None:
    """View a whole tensor's task vectors [K, numel] as matrices [K, out, rest].

    Args:
        tile: Task vectors of one tensor.
        shape: The tensor's shape.
        convolutions: "average" does not treat tensors of three or more dimensions as matrices.

    Returns:
        The matrices, or None for scalars, vectors, empty tensors and, with "average",
        convolutions.

    Examples:
        >>> as_matrices(torch.zeros(2, 24), (4, 3, 2)).shape
        torch.Size([2, 4, 6])
        >>> as_matrices(torch.zeros(2, 24), (4, 3, 2), "average") is None
        True
    """
    dimensions = len(shape)
    if dimensions < 2 or tile.numel() == 0 or (dimensions > 2 and convolutions == "average"):
        return None
    return tile.view(len(tile), shape[0], -1)
