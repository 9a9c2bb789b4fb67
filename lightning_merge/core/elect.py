"""Sign election and disjoint merge, the second and third step of TIES (Yadav et al. 2023)."""

from typing import Literal

import torch
from torch import Tensor

from lightning_merge.core.task_vectors import TaskVectors

Combine = Literal["mean", "sum"]


def elect_signs(task_vectors: Tensor, zero_sign: float = 1.0) -> Tensor:
    """Sign of the summed mass of every entry, +1 or -1.

    Args:
        task_vectors: Stack [K, *shape], usually trimmed.
        zero_sign: Sign of the entries whose mass is exactly zero.

    Returns:
        Signs, [*shape].
    """
    mass = task_vectors.sum(0)
    return torch.where(mass == 0, zero_sign, mass.sign())


def disjoint_merge(task_vectors: Tensor, signs: Tensor, combine: Combine = "mean") -> Tensor:
    """Mean or sum over the experts whose sign agrees with the elected one, zeros excluded.

    Args:
        task_vectors: Stack [K, *shape].
        signs: Elected signs, [*shape].
        combine: "mean" divides by the number of agreeing experts, "sum" does not.

    Returns:
        The merged update, [*shape]; zero where no expert agrees.
    """
    agree = task_vectors * signs > 0
    total = torch.where(agree, task_vectors, 0.0).sum(0)
    return total if combine == "sum" else total / agree.sum(0).clamp(min=1)


def majority_sign(vectors: TaskVectors) -> float:
    """The sign that most entries of the summed task vectors have, +1 when balanced.

    TIES gives it to the entries whose mass is exactly zero. Reads every tensor once.
    """
    signs = (vectors[name].sum(0).sign() for name in vectors.names)
    return -1.0 if sum(sign.sum(dtype=torch.float64).item() for sign in signs) < 0 else 1.0
