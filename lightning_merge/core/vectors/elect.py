"""Sign election and disjoint merge, the second and third step of TIES (Yadav et al. 2023)."""

from typing import Literal

from torch import Tensor

from lightning_merge.core.vectors.task_vectors import TaskVectors, sum_tasks

Combine = Literal["mean", "sum"]


def elect_signs(task_vectors: Tensor, zero_sign: float = 1.0) -> Tensor:
    """Return the sign of the summed task vectors at every entry, +1 or -1.

    Args:
        task_vectors: Stack [K, *shape], usually trimmed.
        zero_sign: Sign of the entries whose sum is exactly zero.

    Returns:
        Signs, [*shape].

    Examples:
        >>> import torch
        >>> elect_signs(torch.tensor([[2.0, -3.0, 1.0], [-1.0, 1.0, -1.0]]))
        tensor([ 1., -1., 1.])
    """
    mass = sum_tasks(task_vectors)
    signs = mass.sign()
    return signs if zero_sign == 0 else signs.masked_fill_(mass == 0, zero_sign)


def disjoint_merge(task_vectors: Tensor, signs: Tensor, combine: Combine = "mean") -> Tensor:
    """Return the mean or sum over the experts that agree with the elected sign, zeros excluded.

    Args:
        task_vectors: Stack [K, *shape]; it is overwritten.
        signs: Elected signs, [*shape].
        combine: "mean" divides by the number of agreeing experts, "sum" does not.

    Returns:
        The merged update, [*shape]; zero where no expert agrees.

    Examples:
        >>> import torch
        >>> stack = torch.tensor([[2.0, -3.0, 1.0], [-1.0, 1.0, 3.0]])
        >>> disjoint_merge(stack, signs=elect_signs(stack))
        tensor([ 2., -3., 2.])
    """
    agreeing = task_vectors.mul_(signs).relu_()  # arithmetic is several times faster than masks
    total = sum_tasks(agreeing).mul_(signs)
    return total if combine == "sum" else total.div_(sum_tasks(agreeing.sign_()).clamp_(min=1))


def majority_sign(vectors: TaskVectors) -> float:
    """Return the sign of most entries of the summed task vectors, +1 when balanced.

    TIES gives it to the entries whose sum is exactly zero. Reads every tensor once.

    Examples:
        >>> import torch
        >>> base, expert = {"w": torch.zeros(3)}, {"w": torch.tensor([-1.0, -2.0, 5.0])}
        >>> majority_sign(TaskVectors(base, {"mnist": expert}))
        -1.0
    """

    def balance(name: str) -> int:
        sums = (sum_tasks(tile) for _, _, tile in vectors.tiles(name))
        return sum(int((mass > 0).sum()) - int((mass < 0).sum()) for mass in sums)

    return -1.0 if sum(vectors.each(vectors.names, balance)) < 0 else 1.0
