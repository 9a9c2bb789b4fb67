"""Regression of a merged layer on the outputs of all experts' (RegMean, Jin et al. 2023).

The merged W minimises sum_k ||X_k W^T - X_k W_k^T||^2 / n_k, so with G_k = X_k^T X_k / n_k and the
task vectors T_k its update is (sum_k G_k)^-1 sum_k G_k T_k^T. It is found as the average T plus
(sum_k G_k + ridge)^-1 sum_k G_k (T_k - T)^T, so that directions in which no expert has inputs get
the average, and one expert merges to itself. All in float64: a few dimensions of a transformer's
activations are hundreds of times larger than the rest.

No expert's G_k is kept. With the running sums S_k = G_1 + ... + G_k,

    sum_k G_k (T_k - T)^T = S_K (T_K - T)^T - sum_(k < K) S_k (T_(k+1) - T_k)^T,

so one sum per layer is enough, and of a symmetric matrix half.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.linear_inputs import Rows

RIDGE = 1e-8
"""Added to the diagonal of sum_k G_k, as a part of its mean."""
_LEAST = 1e-30  # for layers whose inputs are all zero
_ROWS = 256  # of a block: long enough for fast products, short enough to leave half out


class Gram:
    """A sum of X^T X in float64, of which the blocks on and above the diagonal are kept.

    Args:
        size: Width of the inputs X [n, in].
        device: Where to keep it.
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
        """Return the product with [in, out] after multiplying all off the diagonal by `reduce`."""
        product = self.diagonal()[:, None] * right * (1 - reduce)
        for rows, block in self._places():
            height = len(block)
            product[rows].addmm_(block, right[rows.start :], alpha=reduce)
            below = slice(rows.start + height, None)
            product[below].addmm_(block[:, height:].mT, right[rows], alpha=reduce)
        return product

    def dense(self, reduce: float) -> Tensor:
        """Return the matrix [in, in], all off the diagonal multiplied with `reduce`."""
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
        """Yield the rows of every block, and the block, whose columns begin where they do."""
        start = 0
        for block in self._blocks:
            yield slice(start, start + len(block)), block
            start += len(block)


class Regression:
    """The sums of one weight's regression over experts, one expert after the other.

    Args:
        numel: Entries of the weight.
        rows: Inputs, which say how many groups there are and on which device.
        reduce: What G_k is multiplied with off its diagonal.
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
        """Take some inputs of the present expert, see `LinearInputs`.

        How many there are of all is judged by the first ones, see `misjudged`.

        Args:
            name: Of the weight, for messages.
            rows: Inputs.
            share: How much of all that passes through the network they come from.

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
        """Whether the expert had another number of inputs than its first ones let expect."""
        return abs(self._count * self._scale - 1) > 1e-9

    def correct(self, rows: Rows) -> None:
        """Take inputs once more, so that each counts as it should; all of them in turn."""
        self._add_inputs(rows, 1 / self._count - self._scale)

    def _add_inputs(self, rows: Rows, scale: float) -> None:
        for gram, part in zip(self._grams, rows, strict=True):
            gram.add(part, scale)

    def advance(self, before: Tensor, after: Tensor) -> None:
        """Go on from one expert's task vector to the next, before its inputs; it may have none."""
        self._add(before.double() - after.double())
        self._count, self._scale = 0, 0.0

    def solve(self, last: Tensor, average: Tensor) -> Tensor:
        """Return the merged update, flattened, in the type of the task vectors.

        Args:
            last: The last expert's task vector.
            average: Of all experts' task vectors, in float64.
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
"""Takes a weight's name, its inputs, and their share of all inputs."""
Pass = Callable[[Iterable[str], Visit], None]
"""Runs a network over all inputs and shows those of the named weights."""


def with_share(visit: Visit, share: float, name: str, rows: Rows) -> None:
    """Visit inputs of a known share; see `LinearInputs` for the rest."""
    visit(name, rows, share)


def take_inputs(
    run: Pass,
    weights: Iterable[str],
    regressions: dict[str, Regression],
    begin: Callable[[str, Rows], Regression],
) -> None:
    """Take the inputs of one expert's weights into their regressions.

    Args:
        run: Is called once, and once more for weights that see more of some inputs than of others.
        weights: Names of those to look at.
        regressions: By weight; those that lack are added.
        begin: Makes the regression of a weight from its first inputs.
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
