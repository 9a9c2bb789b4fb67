"""EMR: one task vector for all tasks, and for each a mask of one bit per entry and a factor."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_merge.core.checkpoints.names import is_statistic, match_names
from lightning_merge.core.checks import require_choice
from lightning_merge.core.facts import Facts, Needs
from lightning_merge.core.vectors.elect import elect_signs
from lightning_merge.core.vectors.scope import is_merged
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.methods.base import Resources, Weights
from lightning_merge.methods.network import (
    NetworkMethod,
    Recalibrate,
    TaskNetwork,
    frozen,
    own_names,
    stacked,
)

Rescale = Literal["entries", "tensors"]


class MaskedNetwork(TaskNetwork):
    """theta_0 + lambda_k M_k tau with one tau for all tasks k.

    A task that was not merged has no mask; it uses theta_0 + tau and the mean statistics of
    BatchNorm. The weights of the last task are cached, which takes the memory of one more network
    and lets consecutive batches of a task share them.

    Args:
        model: Architecture of base and experts.
        project: Map from its output to features.
        tasks: Names of the tasks, in the order of the rows.

    Attributes:
        network: The base.
        unified: The task vector of all tasks, flattened over `shapes`, [d].
        masks: One bit per entry, packed, [K, d / 8].
        rescalers: Lambda [K].
        statistics: BatchNorm statistics by task, flattened, [K, s].

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> a, b = {"weight": torch.tensor([[2.0, 0]])}, {"weight": torch.tensor([[0, 3.0]])}
        >>> network = EMR()({"weight": torch.zeros(1, 2)}, {"a": a, "b": b}, model=model)
        >>> images, head = torch.ones(1, 2), nn.Identity()
        >>> [network.logits(task, images, head).item() for task in ("a", "b", "unseen")]
        [2.0, 3.0, 5.0]
    """

    told_task = True
    unified: Tensor
    masks: Tensor
    rescalers: Tensor
    statistics: Tensor

    def __init__(
        self, model: nn.Module, project: Callable[[Any], Tensor], tasks: Sequence[str]
    ) -> None:
        super().__init__(model, project, tasks=list(tasks))
        self.network, self.tasks = frozen(model), tuple(tasks)
        floating = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
        self.shapes = {n: t.shape for n, t in floating.items() if is_merged(n, t.dtype)}
        self.measured = {n: t.shape for n, t in floating.items() if is_statistic(n)}
        entries, number = (
            sum(s.numel() for s in shapes.values()) for shapes in (self.shapes, self.measured)
        )
        example = next(iter(floating.values()))
        dtype = reduce(torch.promote_types, [t.dtype for t in floating.values()], torch.float32)
        self.register_buffer("unified", example.new_zeros(entries, dtype=dtype))
        masks = example.new_zeros(len(tasks), -(-entries // 8), dtype=torch.uint8)
        self.register_buffer("masks", masks)
        self.register_buffer("rescalers", example.new_ones(len(tasks), dtype=torch.float64))
        self.register_buffer("statistics", example.new_zeros(len(tasks), number, dtype=dtype))
        self._kept: tuple[tuple[str, bool], dict[str, Tensor]] | None = None
        self.register_load_state_dict_pre_hook(MaskedNetwork._forget)

    def weights(self, task: str) -> dict[str, Tensor]:
        """Return all floating-point tensors of the network for a task, by their model names."""
        if task in self.tasks:
            row = self.tasks.index(task)
            update = unpack(self.masks[row], len(self.unified)) * self.unified
            update *= self.rescalers[row].to(update)
            statistics = self.statistics[row]
        else:
            update, statistics = self.unified.clone(), self.statistics.mean(0)
        base = self.network.state_dict()
        merged = {name: part.add_(base[name]) for name, part in _split(update, self.shapes).items()}
        tensors = merged | _split(statistics, self.measured)
        return {name: tensor.to(base[name].dtype) for name, tensor in tensors.items()}

    def _last_weights(self, task: str) -> dict[str, Tensor]:
        """Return `weights`, cached for the last task and, separately, for inference mode."""
        key = (task, torch.is_inference_mode_enabled())
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # before there are others
            self._kept = key, self.weights(task)
        return self._kept[1]

    def _forget(self, *_: Any) -> None:
        self._kept = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MaskedNetwork":
        """Move or convert the tensors, and drop the cached weights."""
        self._forget()
        return super()._apply(fn, recurse)

    def recalibrate(self, recalibrate: Recalibrate) -> None:
        """Replace the statistics of every task by those measured with its weights."""
        for task, row in zip(self.tasks, self.statistics, strict=True):
            weights = recalibrate({**self.network.state_dict(), **self.weights(task)}, task)
            for name, target in _split(row, self.measured).items():
                target.copy_(weights[name])

    def logits(self, task: str, images: Tensor, head: nn.Module) -> Tensor:
        """See `TaskNetwork`."""
        state = self._last_weights(task)  # tied tensors are given under every name
        features = self.project(functional_call(self.network, state, (images,), tie_weights=False))
        logits: Tensor = head(features)
        return logits


@dataclass(frozen=True)
class EMR(NetworkMethod):
    """Elect, mask and rescale: task k runs theta_0 + lambda_k M_k tau. Needs the task's name.

    Each entry of tau has the sign of sum_k tau_k (0 if the sum is 0) and the largest magnitude
    among the tau_k of that sign. M_k keeps the entries where tau_k has that sign, and lambda_k =
    sum |tau_k| / sum |M_k tau| restores the mean magnitude. A single expert, and experts that
    change different entries, are restored exactly.

    BatchNorm statistics are those of the task's expert, or measured on images of the task.

    Reference: Huang et al. 2024, "EMR-Merging", Algorithm 1.

    Args:
        rescale: What the sums of lambda_k add: magnitudes of all "entries", as in the paper, or
            mean magnitudes of "tensors", as in the published code, so that a bias counts as much
            as a matrix.

    Raises:
        InputError: `rescale` is unknown.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> a, b = {"weight": torch.tensor([[1.0, 2]])}, {"weight": torch.tensor([[3.0, -1]])}
        >>> network = EMR()({"weight": torch.zeros(1, 2)}, {"a": a, "b": b}, model=model)
        >>> network.unified, network.rescalers  # 3 / 5 and 4 / 3
        (tensor([3., 2.]), tensor([0.6000, 1.3333], dtype=torch.float64))
        >>> network.weights("b")["weight"]
        tensor([[4., 0.]])
    """

    rescale: Rescale = "entries"
    facts: ClassVar[Facts] = Facts(
        reference="Huang et al. 2024",
        arxiv="2405.17461",
        needs=Needs.NETWORK,
        readings=1,
        told_task=True,
    )

    def __post_init__(self) -> None:
        require_choice(get_args(Rescale), rescale=self.rescale)

    def make(
        self,
        base: Weights,
        experts: Mapping[str, Weights],
        given: Resources,
        recalibrate: Recalibrate,
    ) -> MaskedNetwork:
        """Unify the task vectors and copy the statistics."""
        model = given.network("EMR")
        network = MaskedNetwork(model, given.project, tuple(experts))
        network.network.load_state_dict(own_names(model, base))
        vectors = self.task_vectors(base, experts, scope=given.scope)
        stored = match_names(model.state_dict(), vectors.base)
        wanted, kept = self._unify(network, vectors, stored)
        network.rescalers.copy_(torch.where(kept > 0, wanted / kept, 1.0))
        for name, target in _split(network.statistics, network.measured).items():
            target.copy_(stacked(vectors, stored[name]))
        if network.measured:
            network.recalibrate(recalibrate)
        return network

    def _unify(
        self, network: MaskedNetwork, vectors: TaskVectors, stored: Mapping[str, str]
    ) -> Tensor:
        """Fill in the unified task vector and the masks, a tile at a time.

        Returns:
            Sum |tau_k| and sum |M_k tau| of every task k, [2, K], weighted as `rescale` says.
        """
        amounts, first = torch.zeros(2, len(vectors), dtype=torch.float64), 0
        for name, shape in network.shapes.items():
            weight = 1 if self.rescale == "entries" else 1 / max(1, shape.numel())
            for span, _, tile in vectors.tiles(stored[name]):
                merged, mask = unify(tile)
                start, stop = first + span.start, first + span.stop
                network.unified[start:stop] = merged
                write_bits(network.masks, start, mask)
                for row, part in zip(amounts, (tile, mask * merged), strict=True):
                    row += weight * part.abs().sum(-1, dtype=torch.float64).cpu()
            first += shape.numel()
        return amounts


def unify(task_vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Elect a sign and the largest magnitude of that sign (Algorithm 1, steps 1 and 2).

    Args:
        task_vectors: Stack [K, n].

    Returns:
        The unified task vector [n], and the entries where each expert has its sign, bool [K, n].

    Examples:
        >>> unify(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
        (tensor([3., 2.]), tensor([[ True,  True],
                [ True, False]]))
    """
    signs = elect_signs(task_vectors, zero_sign=0.0)
    agreeing = (task_vectors * signs).relu_()
    return agreeing.amax(0) * signs, agreeing > 0


def _split(flat: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return views of a vector [..., d] as tensors [..., *shape] by name."""
    parts = flat.split([shape.numel() for shape in shapes.values()], -1)
    return {
        name: part.view((*part.shape[:-1], *shape))
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def pack(masks: Tensor) -> Tensor:
    """Pack booleans [K, d] into bytes [K, d / 8], the first into the lowest bit.

    Examples:
        >>> pack(torch.tensor([[True, False, True]]))
        tensor([[5]], dtype=torch.uint8)
    """
    padded = nn.functional.pad(masks.to(torch.uint8), (0, -masks.shape[1] % 8))
    places = torch.arange(8, dtype=torch.uint8, device=masks.device)
    return (padded.unflatten(1, (-1, 8)) << places).sum(-1, dtype=torch.uint8)


def write_bits(packed: Tensor, start: int, masks: Tensor) -> None:
    """Write booleans [K, n] into packed zeros [K, b], from bit `start` on.

    Examples:
        >>> packed = torch.zeros(1, 1, dtype=torch.uint8)
        >>> write_bits(packed, 1, torch.tensor([[True, True]]))
        >>> packed
        tensor([[6]], dtype=torch.uint8)
    """
    byte, before = divmod(start, 8)
    bits = pack(nn.functional.pad(masks, (before, 0))).to(packed.device)
    packed[:, byte : byte + bits.shape[1]] |= bits


def unpack(mask: Tensor, count: int) -> Tensor:
    """Return the first `count` booleans of packed bytes [b].

    Examples:
        >>> unpack(torch.tensor([5], dtype=torch.uint8), 3)
        tensor([ True, False,  True])
    """
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return ((mask.unsqueeze(-1) >> places) & 1).flatten()[:count].bool()
