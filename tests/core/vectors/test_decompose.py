"""Decompositions agree with the SVD of torch, and are defined where that is not unique."""

import pytest
import torch

from lightning_merge.core.vectors.decompose import (
    as_matrices,
    column_basis,
    polar_factor,
    singular_triplets,
)

SHAPES = [(5, 9), (9, 5), (7, 7), (1, 6), (6, 1)]


def matrix(m, n, rank=99):
    generator = torch.Generator().manual_seed(m * n)
    left, right = torch.randn(m, n, generator=generator), torch.randn(n, n, generator=generator)
    return left[:, :rank] @ right[:rank]


@pytest.mark.parametrize("shape", SHAPES)
def test_triplets_are_those_of_an_svd(shape):
    given = matrix(*shape)
    left, values, right = singular_triplets(given)
    torch.testing.assert_close(values, torch.linalg.svdvals(given.double()), rtol=1e-8, atol=0)
    torch.testing.assert_close(left * values @ right.mT, given.double())
    for side in (left, right, column_basis(given)):
        torch.testing.assert_close(side.mT @ side, torch.eye(min(shape)).double())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_part_of_them_is_the_best_approximation(shape):
    given = matrix(*shape).double()
    left, values, right = singular_triplets(given, 2)
    rest = torch.linalg.svdvals(given)[2:]
    torch.testing.assert_close(
        (given - left * values @ right.mT).norm(), rest.norm(), atol=1e-8, rtol=1e-6
    )


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_lower_ranks(rank, shape):
    given = matrix(*shape, rank=rank)
    assert len(singular_triplets(given).values) == column_basis(given).shape[1] == rank
    factor = polar_factor(given)
    ones = torch.ones(rank).double()
    torch.testing.assert_close(torch.linalg.svdvals(factor)[:rank], ones)
    assert torch.linalg.matrix_rank(factor) == rank
    torch.testing.assert_close(factor @ factor.mT @ given.double(), given.double())


@pytest.mark.parametrize("shape", SHAPES)
def test_polar_factor_solves_the_procrustes_problem(shape):
    given = matrix(*shape).double()
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    torch.testing.assert_close(polar_factor(given), left @ right)


def test_what_is_a_matrix():
    def shape_of(shape, convolutions="matrix"):
        tile = torch.zeros(3, torch.Size(shape).numel())
        matrices = as_matrices(tile, shape, convolutions)
        return None if matrices is None else tuple(matrices.shape)

    assert shape_of((4, 5)) == shape_of((4, 5), "average") == (3, 4, 5)
    assert shape_of((4, 5, 2, 2)) == (3, 4, 20)
    assert shape_of((4, 5, 2, 2), "average") is None
    assert [shape_of(shape) for shape in ((), (4,), (0, 3), (3, 0))] == [None] * 4
