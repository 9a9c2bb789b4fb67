"""Singular value decompositions of weight updates, by eigenvalues of their Gram matrices.

The Gram matrix of the shorter side in float64 gives singular vectors in half the time of an SVD in
float32, or less where few are wanted, and as exactly for all singular values above `RANK_TOLERANCE`
of the largest. Smaller ones are rounding noise of the stored weights: they count as zero, which
keeps what is made of their arbitrary vectors out of a merged model.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

RANK_TOLERANCE = 1e-5
"""Singular values up to this fraction of the largest one count as zero."""

Convolutions = Literal["matrix", "average"]
"""Whether a convolution's weight is a matrix [out, rest], or no matrix at all."""


class Triplets(NamedTuple):
    """Non-zero singular values and their vectors, in float64, the largest first.

    Attributes:
        left: Orthonormal columns, [m, r].
        values: Singular values, [r].
        right: Orthonormal columns, [n, r].
    """

    left: Tensor
    values: Tensor
    right: Tensor


def singular_triplets(matrix: Tensor, rank: int | None = None) -> Triplets:
    """Return the largest singular values of a matrix and their vectors.

    Args:
        matrix: [m, n], of any floating type.
        rank: How many at most; min(m, n) by default.

    Returns:
        R triplets, fewer than asked for if the matrix has a lower rank; none if it is zero.
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
    """Left singular vectors of the non-zero singular values, [m, r] in float64, r <= min(m, n)."""
    tall = matrix.shape[0] > matrix.shape[1]
    return singular_triplets(matrix).left if tall else _short_basis(matrix.double())


def _short_basis(matrix: Tensor) -> Tensor:
    """`column_basis` of a matrix that is not taller than wide, in float64."""
    eigenvalues, vectors = torch.linalg.eigh(matrix @ matrix.mT)
    values = eigenvalues.flip(0).clamp_(min=0).sqrt_()
    rank = int((values > RANK_TOLERANCE * values[:1]).sum())
    return vectors.flip(1)[:, :rank]


def polar_factor(matrix: Tensor) -> Tensor:
    """Return the nearest matrix with singular values 1, or 0 where they were, [m, n] in float64.

    With orthonormal columns where the matrix has full column rank, it solves the orthogonal
    Procrustes problem. Unlike U V^T of an SVD it is unique for every matrix.
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
        convolutions: "average" takes tensors of three dimensions and more for no matrices.

    Returns:
        None if the tensor is no matrix: a scalar or vector, an empty one, or a convolution.
    """
    dimensions = len(shape)
    if dimensions < 2 or tile.numel() == 0 or (dimensions > 2 and convolutions == "average"):
        return None
    return tile.view(len(tile), shape[0], -1)
