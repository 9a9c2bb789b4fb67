"""Isotropic merging: an update whose singular values are all equal."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_merge.core.checks import require_in
from lightning_merge.core.facts import Facts
from lightning_merge.core.vectors.decompose import Convolutions, polar_factor, singular_triplets
from lightning_merge.core.vectors.task_vectors import sum_tasks
from lightning_merge.methods.by_matrix import ByMatrix


@dataclass(frozen=True)
class IsoC(ByMatrix):
    """The summed update with its singular values replaced by their mean. Needs nothing but weights.

    For sum_k tau_k = U S V^T of shape [out, rest] the update is scale * mean(S) U V^T, the mean
    over all min(out, rest) values; directions that no expert has changed stay at zero. Tensors
    other than matrices are averaged, times scale. Cost: 1 eigenvalue problem of size
    min(out, rest) per tensor.

    Reference: Marczak et al. 2025, "No task left behind: isotropic model merging", Algorithm 1.
    The published code averages convolutions (`convolutions="average"`) and the text projection,
    and chooses the scale on held-out data.

    Args:
        scale: Factor of the update.
        convolutions: Treat a convolution's weight as a "matrix" [out, rest], or "average" it.

    Raises:
        InputError: The scale is not finite, or `convolutions` unknown.

    Examples:
        >>> experts = {"a": {"w": torch.diag(torch.tensor([3.0, 0]))}}
        >>> experts["b"] = {"w": torch.diag(torch.tensor([0, 1.0]))}
        >>> IsoC()({"w": torch.zeros(2, 2)}, experts)["w"].diagonal()
        tensor([2., 2.])
    """

    scale: float = 1.0
    convolutions: Convolutions = "matrix"
    facts: ClassVar[Facts] = Facts(
        reference="Marczak et al. 2025",
        arxiv="2502.04959",
        readings=1,
        whole=True,
        work="1 eigenproblem a tensor",
    )

    def merged(self, matrices: Tensor) -> Tensor:
        """Return the update of the class, [m, n], from task vectors [K, m, n]."""
        left, values, right = singular_triplets(sum_tasks(matrices))
        return left @ right.mT * (values.sum() / min(matrices.shape[1:]))


@dataclass(frozen=True)
class IsoCTS(ByMatrix):
    """Iso-C in a common and task-specific subspaces. Needs nothing but weights.

    The common subspace is spanned by the c largest singular triplets of sum_k tau_k. Expert k adds
    the t largest triplets of tau_k - U_c U_c^T tau_k, its change outside the common subspace. The
    left and the right vectors are replaced by the nearest orthonormal ones, and all
    c + K t = min(out, rest) singular values by their mean; t is round((1 - common) min(out, rest)
    / K). With t = 0, as for small tensors, this is Iso-C. Tensors other than matrices are
    averaged, times scale. Cost: K + 3 eigenvalue problems of size min(out, rest) per tensor.

    Reference: Marczak et al. 2025, "No task left behind: isotropic model merging", Algorithm 2.
    The published code averages convolutions (`convolutions="average"`) and the text projection,
    and chooses the scale on held-out data.

    Args:
        scale: Factor of the update.
        common: Fraction of dimensions in the common subspace, in [0, 1].
        convolutions: Treat a convolution's weight as a "matrix" [out, rest], or "average" it.

    Raises:
        InputError: A value is out of bounds.

    Examples:
        >>> experts = {"a": {"w": torch.diag(torch.tensor([4.0, 1]))}}
        >>> experts["b"] = {"w": torch.diag(torch.tensor([0, 2.0]))}
        >>> merged = IsoCTS(common=0.0)({"w": torch.zeros(2, 2)}, experts)["w"]
        >>> merged.diagonal()  # the mean of 4 and 2
        tensor([3., 3.])
    """

    scale: float = 1.0
    common: float = 0.8
    convolutions: Convolutions = "matrix"
    facts: ClassVar[Facts] = Facts(
        reference="Marczak et al. 2025",
        arxiv="2502.04959",
        readings=1,
        whole=True,
        work="K + 3 eigenproblems a tensor",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_in("[0, 1]", common=self.common)

    def merged(self, matrices: Tensor) -> Tensor:
        """Return the update of the class, [m, n], from task vectors [K, m, n]."""
        full, specific = min(matrices.shape[1:]), self._specific(matrices)
        shared = singular_triplets(sum_tasks(matrices), full - len(matrices) * specific)
        parts = [shared]
        for matrix in matrices.double() if specific else ():
            outside = matrix - shared.left @ (shared.left.mT @ matrix)
            parts.append(singular_triplets(outside, specific))
        left, values, right = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
        return polar_factor(left) @ polar_factor(right).mT * (values.sum() / full)

    def _specific(self, matrices: Tensor) -> int:
        """Return the number of dimensions specific to each expert, t."""
        experts, full = len(matrices), min(matrices.shape[1:])
        rest = full - int(full * self.common)
        return min(round(rest / experts), full // experts)
