"""Regression of a merged layer on the outputs of all experts' (RegMean, Jin et al. 2023).

The merged W minimises sum_k ||X_k W^T - X_k W_k^T||^2 / n_k, so with G_k = X_k^T X_k / n_k and the
task vectors T_k its update is (sum_k G_k)^-1 sum_k G_k T_k^T. It is found as the average T plus
(sum_k G_k + ridge)^-1 sum_k G_k (T_k - T)^T, so that directions in which no expert has inputs get
the average, and one expert merges to itself. All in float64: a few dimensions of a transformer's
activations are hundreds of times larger than the rest.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_merge.core.errors import InputError
from lightning_merge.core.linear_inputs import Rows

RIDGE = 1e-8
"""Added to the diagonal of sum_k G_k, as a part of its mean."""
_LEAST = 1e-30  # for layers whose inputs are all zero


@dataclass
class Grams:
    """Gram matrices of the inputs of a network's weights, summed as they are shown.

    Attributes:
        sums: X^T X by the name of the weight, [groups, in, in].
        counts: Number of rows n of all groups.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, rows: Rows) -> None:
        """Take the inputs of a weight, see `LinearInputs`.

        Raises:
            InputError: They are not finite.
        """
        gram = torch.stack([x.mT @ x for x in (part.double() for part in rows)])
        if not bool(gram.isfinite().all()):
            raise InputError(
                f"batches: NaN or infinite activations reach {name}; run the network in float32"
            )
        numbers = [len(part) for part in rows]
        if name in self.sums:
            gram += self.sums[name]
            numbers = [a + b for a, b in zip(numbers, self.counts[name], strict=True)]
        self.sums[name], self.counts[name] = gram, numbers

    def means(self, name: str, reduce: float) -> Tensor:
        """X^T X / n with the entries off the diagonal times `reduce`, [groups, in, in]."""
        gram = self.sums[name] / self.sums[name].new_tensor(self.counts[name])[:, None, None]
        diagonal = gram.diagonal(dim1=-2, dim2=-1).clone()
        gram *= reduce
        gram.diagonal(dim1=-2, dim2=-1).copy_(diagonal)
        return gram


class Regression:
    """The sums of one weight's regression over experts, one expert at a time.

    The average T is known when all have been taken. Until then T_1 stands for it: what is summed
    are differences from the first expert, so that equal experts leave no rounding errors.
    """

    def __init__(self) -> None:
        self._experts = 0

    def add(self, gram: Tensor, task_vector: Tensor) -> None:
        """Take an expert's Gram matrix [groups, in, in] and task vector [out, ...]."""
        gram = gram.to(task_vector.device)
        if not self._experts:
            self._first = task_vector.clone()
            self._left = torch.zeros_like(gram)
            self._apart = torch.zeros_like(task_vector, dtype=gram.dtype)
            self._apart = self._apart.reshape(len(gram), -1, gram.shape[-1])
            self._right = torch.zeros_like(self._apart.mT)
        apart = (task_vector.double() - self._first.double()).reshape_as(self._apart)
        self._experts += 1
        self._left += gram
        self._apart += apart
        self._right += gram @ apart.mT

    def add_idle(self, task_vector: Tensor) -> None:
        """Take, after another, an expert that does not use the weight for its inputs."""
        self.add(torch.zeros_like(self._left), task_vector)

    def solve(self) -> Tensor:
        """The merged update, flattened, in the type of the task vectors."""
        average = self._apart / self._experts
        right = self._right - self._left @ average.mT
        left = self._left.clone()
        diagonal = left.diagonal(dim1=-2, dim2=-1)
        diagonal += (RIDGE * diagonal.mean(-1, keepdim=True)).clamp_(min=_LEAST)
        apart = average + torch.cholesky_solve(right, torch.linalg.cholesky(left)).mT
        return (self._first.double().flatten() + apart.reshape(-1)).to(self._first.dtype)
