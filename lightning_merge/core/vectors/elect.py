"""Sign election and disjoint merge, the second and third step of TIES (Yadav et al. 2023)."""

from typing import Literal

from torch import Tensor

from lightning_merge.core.vectors.task_vectors import TaskVectors, sum_tasks

Combine = Literal["mean", "sum"]


def elect_signs(task_vectors: Tensor, zero_sign: float = 1.0) -> Tensor:
    """Sign of the summed mass of every entry, +1 or -1.

    Args:
        task_vectors: Stack [K, *shape], usually trimmed.
        zero_sign: Sign of the entries whose mass is exactly zero.

    Returns:
        Signs, [*shape].
    """
    mass = sum_tasks(task_vectors)
    signs = mass.sign()
    return signs if zero_sign == 0 else signs.masked_fill_(mass == 0, zero_sign)


def disjoint_merge(task_vectors: Tensor, signs: Tensor, combine: Combine = "mean") -> Tensor:
    """Mean or sum over the experts whose sign agrees with the elected one, zeros excluded.

    Args:
        task_vectors: Stack [K, *shape]; it is overwritten.
        signs: Elected signs, [*shape].
        combine: "mean" divides by the number of agreeing experts, "sum" does not.

    Returns:
        The merged update, [*shape]; zero where no expert agrees.
    """
    agreeing = task_vectors.mul_(signs).relu_()  # arithmetic is several times faster than masks
    total = sum_tasks(agreeing).mul_(signs)
    return total if combine == "sum" else total.div_(sum_tasks(agreeing.sign_()).clamp_(min=1))


def majority_sign(vectors: TaskVectors) -> float:
    """Return the sign that most entries of the summed task vectors have, +1 when balanced.

    TIES gives it to the entries whose mass is exactly zero. Reads every tensor once.
    """

    def balance(name: str) -> int:
        sums = (sum_tasks(tile) for _, _, tile in vectors.tiles(name))
        return sum(int((mass > 0).sum()) - int((mass < 0).sum()) for mass in sums)

    return -1.0 if sum(vectors.each(vectors.names, balance)) < 0 else 1.0
