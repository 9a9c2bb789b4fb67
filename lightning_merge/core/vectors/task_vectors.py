"""Task vectors of several experts, stacked and computed tile by tile."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy

from torch import Tensor

from lightning_merge.core.dtypes import wide_dtype
from lightning_merge.core.parallel import Item, Result, run_each
from lightning_merge.core.vectors.scope import Kind, is_merged
from lightning_merge.core.vectors.stored import StoredExperts
from lightning_merge.core.vectors.tiles import Span, spans

TileMap = Callable[[Span, Tensor], Tensor]
"""Maps a span and its stack [K, n] to another stack [K, n]; it may change its input."""


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in the precision used for sums: float32, or float64 if it has that.

    Examples:
        >>> import torch
        >>> wide(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor.to(wide_dtype(tensor.dtype))


def flatten_tasks(stacked: Tensor) -> Tensor:
    """View a stack [K, *shape] as [K, numel], including scalars and empty tensors.

    Examples:
        >>> import torch
        >>> flatten_tasks(torch.zeros(2, 3, 4)).shape
        torch.Size([2, 12])
    """
    return stacked.reshape(len(stacked), stacked[0].numel())


def sum_tasks(stacked: Tensor) -> Tensor:
    """Return the sum of a stack [K, ...] over the experts, added one after the other, [...].

    Unlike `Tensor.sum` it gives the same bits however the entries are divided into tiles.

    Examples:
        >>> import torch
        >>> sum_tasks(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([4., 6.])
    """
    total = stacked[0].clone()
    for row in stacked[1:]:
        total += row
    return total


class TaskVectors:
    """Task vectors tau_k = theta_k - theta_0 of K experts, computed on demand.

    `read(span)` returns a tile [K, n] of one tensor's task vectors in float32 (float64 for tensors
    stored so), `vectors[name]` the whole stack [K, *shape]. Nothing is cached, so the memory in
    use is that of the result, whatever the size of the mappings.

    Args:
        base: Pretrained weights by name.
        experts: Task to fine-tuned weights by name that `check_experts` has accepted.
        jobs: Number of processes that work on tensors at once, see `run_each`.
        scope: Tensors that count in sums, ranks and quantiles: "all" that can have task vectors,
            or only those that an expert has "changed", and of tied ones only the first.

    Attributes:
        stored: Base and experts as stored.
        base: The base as stored.
        tasks: The experts' names.
        names: The tensors that count, in the base's order.
        ties: Name of every other tied tensor to the first name, see `find_scope`.
        device: Device of the tiles.

    Examples:
        >>> import torch
        >>> base, mnist = {"w": torch.ones(2)}, {"w": torch.tensor([1.5, 0.0])}
        >>> vectors = TaskVectors(base, {"mnist": mnist})
        >>> vectors["w"]
        tensor([[ 0.5000, -1.0000]])
        >>> vectors.map(lambda span, tile: tile.relu_())["w"]
        tensor([[0.5000, 0.0000]])
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        experts: Mapping[str, Mapping[str, Tensor]],
        jobs: int = 1,
        scope: Kind = "all",
    ) -> None:
        self.stored = stored = StoredExperts(base, experts, scope)
        self.base, self.tasks, self.names = stored.base, stored.tasks, stored.names
        self.ties, self.device = stored.ties, stored.device
        # A device cannot be used in forked processes.
        self.jobs = jobs if self.device.type == "cpu" else 1
        self._maps: tuple[TileMap, ...] = ()
        self._whole = False
        self._zero: frozenset[str] = frozenset()

    def __len__(self) -> int:
        """Return the number of experts, K."""
        return len(self.tasks)

    def __getitem__(self, name: str) -> Tensor:
        """Return the task vectors of the named tensor, [K, *shape], after every map.

        Raises:
            InputError: The base's or an expert's tensor has a NaN or infinite value.
        """
        whole = self.read(Span(name, 0, self.numel(name)))
        return whole.view(len(self), *self.base.shape(name))

    def numel(self, name: str) -> int:
        """Return the number of entries of a tensor."""
        return self.base.numel(name)

    def is_zero(self, name: str) -> bool:
        """Return whether the named tensor's task vectors are known to be zero."""
        return name in self._zero or self.stored.is_kept(name)

    def spans(self, name: str) -> Iterable[Span]:
        """Return the tiles of a tensor, see `tiles.spans`; a single one in a view of `whole`."""
        size = self.numel(name)
        if self._whole and size:
            return [Span(name, 0, size)]
        return spans(name, self.base.shape(name), len(self))

    def read(self, span: Span) -> Tensor:
        """Return the task vectors' entries after every map, a new tensor [K, n].

        Raises:
            InputError: The base's or an expert's entries have a NaN or infinite value.
        """
        return self._tile(span, *self.stored.buffers(span))

    def tiles(self, name: str) -> Iterator[tuple[Span, Tensor, Tensor]]:
        """Yield every span of a tensor with the base's entries [n] and the task vectors' [K, n].

        Their memory is reused for the next span, which saves allocations; the caller may change
        it.

        Raises:
            InputError: The base's or an expert's entries have a NaN or infinite value.
        """
        buffers: tuple[Tensor, Tensor] | None = None
        for span in self.spans(name):
            buffers = buffers or self.stored.buffers(span)
            size = span.stop - span.start
            base = buffers[0][:size]
            tile = self._tile(span, base, buffers[1].view(-1)[: len(self) * size].view(-1, size))
            yield span, base, tile

    def weights(self, name: str) -> Tensor:
        """Return the experts' weights after every map, [K, *shape].

        They are theta_0 + tau_k; statistics are returned as stored.

        Raises:
            InputError: The base's or an expert's tensor has a NaN or infinite value.
        """
        if not is_merged(name, self.base.dtype(name)):
            return self.stored.stack(name)
        return self[name] + wide(self.base[name])

    def expert(self, name: str, index: int) -> Tensor:
        """Return the weights of one expert, [*shape]: a row of `weights`.

        The other experts are not read unless a map needs to see them together.
        """
        merged = is_merged(name, self.base.dtype(name))
        if not merged or self._is_plain(name):
            weight = wide(self.stored.experts[self.tasks[index]][name])
            if bool(weight.isfinite().all()):
                return weight
        return self.weights(name)[index]  # raises, naming the expert

    def of_expert(self, name: str, index: int) -> Tensor:
        """Return the task vector of one expert, [*shape], without reading others if possible."""
        if not self._is_plain(name):
            return self[name][index]
        base = wide(self.base[name])
        return self.expert(name, index).to(base.dtype) - base

    def map(self, function: TileMap) -> "TaskVectors":
        """Return a lazy view in which every tile has also passed through `function(span, tile)`."""
        view = copy(self)
        view._maps = (*self._maps, function)
        return view

    def whole(self) -> "TaskVectors":
        """Return a lazy view in which every tensor is one tile, for work on whole tensors.

        Memory in use is then that of the largest tensor, for all experts.
        """
        view = copy(self)
        view._whole = True
        return view

    def zeroed(self, names: Iterable[str]) -> "TaskVectors":
        """Return a lazy view in which the named tensors' task vectors are zero.

        The experts' tensors are then not read, and later maps are not called on them; those maps
        must take zeros to zeros.
        """
        view = copy(self)
        view._zero = self._zero | frozenset(names)
        return view

    def each(self, items: Iterable[Item], function: Callable[[Item], Result]) -> list[Result]:
        """Return the results of a function on names or groups of them, in order, see `run_each`."""
        return run_each(function, items, self.jobs, "reading tensors")

    def _is_plain(self, name: str) -> bool:
        """Return whether a tensor's task vectors are the differences of the stored weights."""
        return not self._maps and not self.is_zero(name)

    def _tile(self, span: Span, base: Tensor, tile: Tensor) -> Tensor:
        """Read into the given memory and return the mapped task vectors."""
        span = span._replace(name=self.ties.get(span.name, span.name))
        if self.is_zero(span.name):
            self.base.read_into(span.name, span.start, base)
            return tile.zero_()
        self.stored.read_into(span, base, tile)
        tile.sub_(base)
        self.stored.check_finite(span, base, tile)
        for function in self._maps:
            tile = function(span, tile)
        return tile
