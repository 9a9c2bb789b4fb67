"""TSV-M: merge the largest singular triplets of every expert, made orthogonal."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_merge.core.facts import Facts
from lightning_merge.core.vectors.decompose import Convolutions, polar_factor, singular_triplets
from lightning_merge.methods.by_matrix import ByMatrix


@dataclass(frozen=True)
class TSVM(ByMatrix):
    """Task singular vectors, whitened and added. Needs nothing but weights.

    Of each expert's update [out, rest] = U_k S_k V_k^T the largest floor(min(out, rest) / K)
    triplets are kept, at least one. The concatenations U = [U_1 ... U_K] and V = [V_1 ... V_K]
    are replaced by the nearest matrices with orthonormal columns (orthogonal Procrustes), so that
    tasks no longer interfere; the update is scale * U S V^T. Tensors other than matrices are
    averaged, times scale.

    If columns of different experts coincide, the nearest matrix is not unique; the undetermined
    part is left out, so K copies of one expert merge to its largest triplets.
    Cost per tensor: 1 eigenvalue problem of size min(out, rest) for each expert and 2 for all.

    Reference: Gargiulo et al. 2025, "Task Singular Vectors", Algorithm 1. The published code
    averages convolutions (`convolutions="average"`) and the text projection.

    Args:
        scale: Factor of the update.
        convolutions: Treat a convolution's weight as a "matrix" [out, rest], or "average" it.

    Raises:
        InputError: The scale is not finite, or `convolutions` unknown.

    Examples:
        >>> experts = {"a": {"w": torch.diag(torch.tensor([3.0, 0.5]))}}
        >>> experts["b"] = {"w": torch.diag(torch.tensor([0.5, 2.0]))}
        >>> TSVM()({"w": torch.zeros(2, 2)}, experts)["w"].diagonal()  # a triplet from each
        tensor([3., 2.])
    """

    scale: float = 1.0
    convolutions: Convolutions = "matrix"
    facts: ClassVar[Facts] = Facts(
        reference="Gargiulo et al. 2025",
        arxiv="2412.00081",
        readings=1,
        whole=True,
        work="K + 2 eigenproblems a tensor",
    )

    def merged(self, matrices: Tensor) -> Tensor:
        """Return `whitened_sum` of the task vectors."""
        return whitened_sum(matrices)


def whitened_sum(matrices: Tensor) -> Tensor:
    """Return the sum of truncated matrices with decorrelated singular vectors.

    Args:
        matrices: [K, m, n].

    Returns:
        [m, n] in float64.

    Examples:
        >>> matrices = [torch.diag(torch.tensor([3.0, 0.5])), torch.diag(torch.tensor([0.5, 2.0]))]
        >>> whitened_sum(torch.stack(matrices)).diagonal()
        tensor([3., 2.], dtype=torch.float64)
    """
    rank = max(1, min(matrices.shape[1:]) // len(matrices))
    left, values, right = zip(*(singular_triplets(m, rank) for m in matrices), strict=True)
    return (
        polar_factor(torch.cat(left, 1)) * torch.cat(values) @ polar_factor(torch.cat(right, 1)).mT
    )
