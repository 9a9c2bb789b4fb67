"""A base and its experts as stored: the tensors that count, their types and their entries."""

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from lightning_merge.core.checkpoints.checkpoint import as_checkpoint
from lightning_merge.core.checkpoints.names import common_prefix
from lightning_merge.core.checkpoints.safetensors_file import Layout
from lightning_merge.core.dtypes import common_dtype, wide_dtype
from lightning_merge.core.errors import InputError
from lightning_merge.core.vectors.scope import Kind, find_scope
from lightning_merge.core.vectors.tiles import Span


class StoredExperts:
    """The base theta_0 and K experts theta_k, read on demand.

    Args:
        base: Pretrained weights by name.
        experts: Task to fine-tuned weights that `check_experts` has accepted.
        scope: Tensors that count in sums, ranks and quantiles: "all" that can have task vectors,
            or only those that an expert has "changed", and of tied ones only the first.

    Attributes:
        tasks: The experts' names.
        names: The tensors that count, in the base's order.
        ties: Name of every other tied tensor to the first name, see `find_scope`.
        device: Device that entries are read to: the base's if the base is in memory.

    Examples:
        >>> base = {"w": torch.zeros(2), "steps": torch.tensor(7)}
        >>> stored = StoredExperts(base, {"mnist": {**base, "w": torch.ones(2)}})
        >>> stored.names, stored.stack("w").tolist(), stored.dtype("steps")
        (('w',), [[1.0, 1.0]], torch.int64)
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        experts: Mapping[str, Mapping[str, Tensor]],
        scope: Kind = "all",
    ) -> None:
        self.base = as_checkpoint(base)
        self.experts = {task: as_checkpoint(expert) for task, expert in experts.items()}
        self.tasks = tuple(experts)
        self.names, self._kept, self.ties = find_scope(self.base, self.experts.values(), scope)
        self._prefix = common_prefix([n for n in self.names if n not in self._kept])
        in_memory = self.base.path is None and len(self.base) > 0
        self.device = next(iter(base.values())).device if in_memory else torch.device("cpu")

    def key(self, name: str) -> str:
        """Return the key of a tensor's random numbers: its name without the prefix common to all.

        So a network and a part of it draw the same numbers if only that part has changed.
        """
        return name.removeprefix(self._prefix)

    def is_kept(self, name: str) -> bool:
        """Return whether every expert has a floating-point tensor bit for bit as in the base."""
        return name in self._kept

    def computed(self) -> list[str]:
        """Return the tensors that depend on the experts, including tied ones and statistics."""
        floating = (name for name in self.base if self.base.dtype(name).is_floating_point)
        return [name for name in floating if not self.is_kept(name)]

    def dtype(self, name: str) -> torch.dtype:
        """Return the type of a merged tensor.

        It is the type in which base and experts are stored. If their floating types differ, it is
        the one that holds them all, so that nothing an expert has learned is rounded away, see
        `common_dtype`. A tensor that is only copied keeps the base's type.
        """
        dtype = self.base.dtype(name)
        if not dtype.is_floating_point or self.is_kept(name):
            return dtype
        return common_dtype([dtype, *(expert.dtype(name) for expert in self.experts.values())])

    def layout(self) -> Layout:
        """Return type and shape of every merged tensor by name."""
        return {name: (self.dtype(name), self.base.shape(name)) for name in self.base}

    def stack(self, name: str) -> Tensor:
        """Return all experts' tensors of that name, including statistics, [K, *shape].

        Raises:
            InputError: The base's or an expert's tensor has a NaN or infinite value.
        """
        span = Span(name, 0, self.base.numel(name))
        base, tile = self.read(span)
        if not self.is_kept(name):
            self.check_finite(span, base, tile)
        return tile.view(len(self.tasks), *self.base.shape(name))

    def read(self, span: Span) -> tuple[Tensor, Tensor]:
        """Return the base's entries [n] and the experts' [K, n], unchecked, in the sums' type."""
        base, tile = self.buffers(span)
        self.read_into(span, base, tile)
        return base, tile

    def buffers(self, span: Span) -> tuple[Tensor, Tensor]:
        """Return memory for the base's entries [n] and the experts' [K, n], in the sums' type."""
        dtype, size = wide_dtype(self.base.dtype(span.name)), span.stop - span.start
        empty = partial(torch.empty, dtype=dtype, device=self.device)
        return empty(size), empty(len(self.tasks), size)

    def read_into(self, span: Span, base: Tensor, tile: Tensor) -> None:
        """Read the base's entries and the experts' into memory, unchecked."""
        self.base.read_into(span.name, span.start, base)
        for row, expert in zip(tile, self.experts.values(), strict=True):
            expert.read_into(span.name, span.start, row)

    def check_finite(self, span: Span, base: Tensor, tile: Tensor) -> None:
        """Check the base's entries [n] and what the experts have there [K, n].

        Raises:
            InputError: They have a NaN or infinite value.
        """
        if math.isfinite(tile.sum()):
            return
        if not torch.isfinite(base).all():
            raise InputError(
                f"base: {span.name} has NaN or infinite values; save the checkpoint again"
            )
        broken = [t for t, row in zip(self.tasks, tile, strict=True) if not row.isfinite().all()]
        if broken:
            raise InputError(
                f"experts: {span.name} of {', '.join(broken)} has NaN or infinite values; "
                "leave such an expert out or save its checkpoint again"
            )
