"""Regression of a merged layer on the outputs of all experts (RegMean, Jin et al. 2023).

The merged W minimises sum_k ||X_k W^T - X_k W_k^T||^2 / n_k, so with G_k = X_k^T X_k / n_k and the
task vectors T_k its update is (sum_k G_k)^-1 sum_k G_k T_k^T. It is computed as the average T plus
(sum_k G_k + ridge)^-1 sum_k G_k (T_k - T)^T, so that directions in which no expert has inputs get
the average, and one expert merges to itself. All sums are in float64: a few dimensions of a
transformer's activations are hundreds of times larger than the rest.

No single G_k is kept. With the running sums S_k = G_1 + ... + G_k,

    sum_k G_k (T_k - T)^T = S_K (T_K - T)^T - sum_(k < K) S_k (T_(k+1) - T_k)^T,

so one sum per layer is enough, and half of a symmetric matrix.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.linear_inputs import Rows

RIDGE = 1e-8
"""Ridge added to the diagonal of sum_k G_k, as a fraction of its mean."""
_LEAST = 1e-30  # for layers whose inputs are all zero
_ROWS = 256  # rows of a block: long enough for fast products, short enough to skip half the matrix


class Gram:
    """A sum of X^T X in float64, stored as the blocks on and above the diagonal.

    Args:
        size: Width of the inputs X [n, in].
        device: Device of the sum.

    Examples:
        >>> gram = Gram(2, torch.device("cpu"))
        >>> gram.add(torch.tensor([[1.0, 2.0]]), scale=1.0)
        >>> gram.dense(reduce=0.5)
        tensor([[1., 1.], [1., 4.]], dtype=torch.float64)
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._blocks = [
            torch.zeros(min(_ROWS, size - start), size - start, dtype=torch.float64, device=device)
            for start in range(0, size, _ROWS)
        ]

    def add(self, inputs: Tensor, scale: float) -> None:
        """Add scale * X^T X of inputs [n, in]."""
        wide = inputs.double()
        for rows, block in self._places():
            block.addmm_(wide[:, rows].mT, wide[:, rows.start :], alpha=scale)

    def times(self, right: Tensor, reduce: float) -> Tensor:
        """Return the product with [in, out] after multiplying off-diagonal entries by `reduce`."""
        product = self.diagonal()[:, None] * right * (1 - reduce)
        for rows, block in self._places():
            height = len(block)
            product[rows].addmm_(block, right[rows.start :], alpha=reduce)
            below = slice(rows.start + height, None)
            product[below].addmm_(block[:, height:].mT, right[rows], alpha=reduce)
        return product

    def dense(self, reduce: float) -> Tensor:
        """Return the matrix [in, in], with off-diagonal entries multiplied by `reduce`."""
        size = sum(map(len, self._blocks))
        whole = self._blocks[0].new_empty(size, size)
        for rows, block in self._places():
            whole[rows, rows.start :] = block
            whole[rows.start :, rows] = block.mT
        whole *= reduce
        whole.diagonal().copy_(self.diagonal())
        return whole

    def diagonal(self) -> Tensor:
        """Return a copy of the diagonal, [in]."""
        return torch.cat([block.diagonal() for block in self._blocks])

    def _places(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of every block and the block, whose columns begin at its first row."""
        start = 0
        for block in self._blocks:
            yield slice(start, start + len(block)), block
            start += len(block)


class Regression:
    """The sums of one weight's regression over experts, one expert after the other.

    Args:
        numel: Entries of the weight.
        rows: Inputs, which determine the number of groups and the device.
        reduce: Factor of the off-diagonal entries of G_k.

    Examples:
        >>> inputs, expert = [torch.tensor([[1.0, 0.0]])], torch.tensor([[4.0, 6.0]])
        >>> regression = Regression(2, inputs, reduce=1.0)
        >>> regression.add("fc.weight", inputs, share=1.0)  # only input 0 is ever used
        >>> regression.solve(expert, average=expert.double() / 2)
        tensor([4., 3.])
    """

    def __init__(self, numel: int, rows: Rows, reduce: float) -> None:
        self._reduce, self._count, self._scale = reduce, 0, 0.0
        self._grams = [Gram(part.shape[-1], part.device) for part in rows]
        outputs = [numel // (len(rows) * part.shape[-1]) for part in rows]
        self._right = [
            part.new_zeros(part.shape[-1], size, dtype=torch.float64)
            for part, size in zip(rows, outputs, strict=True)
        ]

    def add(self, name: str, rows: Rows, share: float) -> None:
        """Add some inputs of the present expert, see `LinearInputs`.

        The expert's total number of inputs is extrapolated from the first ones, see `misjudged`.

        Args:
            name: Name of the weight, for messages.
            rows: Inputs.
            share: Fraction of the network's inputs that they come from.

        Raises:
            InputError: They are not finite.
        """
        if not all(bool(part.isfinite().all()) for part in rows):
            raise InputError(
                f"batches: NaN or infinite activations reach {name}; run the network in float32"
            )
        self._scale = self._scale or share / max(1, len(rows[0]))
        self._count += len(rows[0])
        self._add_inputs(rows, self._scale)

    @property
    def misjudged(self) -> bool:
        """Whether the expert's number of inputs differs from the extrapolated one."""
        return abs(self._count * self._scale - 1) > 1e-9

    def correct(self, rows: Rows) -> None:
        """Add inputs once more, to correct their weight; to be called with all of them in turn."""
        self._add_inputs(rows, 1 / self._count - self._scale)

    def _add_inputs(self, rows: Rows, scale: float) -> None:
        for gram, part in zip(self._grams, rows, strict=True):
            gram.add(part, scale)

    def advance(self, before: Tensor, after: Tensor) -> None:
        """Go on from one expert's task vector to the next, before any inputs of the latter."""
        self._add(before.double() - after.double())
        self._count, self._scale = 0, 0.0

    def solve(self, last: Tensor, average: Tensor) -> Tensor:
        """Return the merged update, flattened, in the type of the task vectors.

        Args:
            last: The last expert's task vector.
            average: Mean of all experts' task vectors, in float64.
        """
        self._add(last.double() - average)
        solved = []
        for gram, right in zip(self._grams, self._right, strict=True):
            left = gram.dense(self._reduce)
            diagonal = left.diagonal()
            diagonal += (RIDGE * diagonal.mean()).clamp_(min=_LEAST)
            solved.append(torch.cholesky_solve(right, torch.linalg.cholesky(left)).mT)
        apart = torch.cat([part.reshape(-1) for part in solved]).to(average.device)
        return (average.flatten() + apart).to(last.dtype)

    def _add(self, task_vector: Tensor) -> None:
        """Add S T^T of a difference of task vectors, in float64."""
        for gram, right, part in zip(
            self._grams, self._right, self._matrices(task_vector), strict=True
        ):
            right += gram.times(part, self._reduce)

    def _matrices(self, task_vector: Tensor) -> list[Tensor]:
        """Return a task vector as the transposed matrix [in, out] of every group, in float64."""
        device, width = self._grams[0].diagonal().device, len(self._grams[0].diagonal())
        wide = task_vector.to(device, torch.float64)
        return [part.mT for part in wide.reshape(len(self._grams), -1, width)]


Visit = Callable[[str, Rows, float], None]
"""From a weight's name, its inputs, and their share of all inputs."""
Pass = Callable[[Iterable[str], Visit], None]
"""Runs a network over all inputs and visits the inputs of the named weights."""


def with_share(visit: Visit, share: float, name: str, rows: Rows) -> None:
    """Visit inputs with a known share, in the argument order of `LinearInputs`.

    Examples:
        >>> from functools import partial
        >>> visit = partial(with_share, lambda name, rows, share: print(name, share), 0.5)
        >>> visit("fc.weight", [torch.zeros(3, 2)])
        fc.weight 0.5
    """
    visit(name, rows, share)


def take_inputs(
    run: Pass,
    weights: Iterable[str],
    regressions: dict[str, Regression],
    begin: Callable[[str, Rows], Regression],
) -> None:
    """Add the inputs of one expert's weights to their regressions.

    Args:
        run: Called once, and once more for weights that see more of some inputs than of others.
        weights: Names of the weights.
        regressions: By weight; missing ones are added.
        begin: Makes the regression of a weight from its first inputs.

    Examples:
        >>> rows, regressions = [torch.eye(2)], {}
        >>> def run(names, visit):
        ...     for name in names:
        ...         visit(name, rows, 1.0)
        >>> take_inputs(run, ["fc"], regressions, lambda name, rows: Regression(4, rows, 1.0))
        >>> regressions["fc"].solve(torch.ones(2, 2), torch.zeros(2, 2).double())
        tensor([1., 1., 1., 1.])
    """
    seen = set()

    def add(name: str, rows: Rows, share: float) -> None:
        if name not in regressions:
            regressions[name] = begin(name, rows)
        seen.add(name)
        regressions[name].add(name, rows, share)

    run(weights, add)
    if wrong := sorted(name for name in seen if regressions[name].misjudged):
        run(wrong, lambda name, rows, share: regressions[name].correct(rows))
