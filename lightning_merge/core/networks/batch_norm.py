"""Running statistics of BatchNorm layers for merged weights, which were never trained."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.hooks import Args, Kwargs, hooked
from lightning_merge.core.vectors.task_vectors import wide


class _Moments:
    """Mean and variance per channel of all inputs of a layer.

    Attributes:
        count: Values per channel so far: images times positions.
        mean: Mean per channel, float64 [C].
        squares: Sum of squared differences from the mean, float64 [C].
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, name: str, layer: nn.Module, args: Args, _: Kwargs) -> None:
        """Add one input [n, C, *positions] of the layer (Chan et al. 1979, pairwise update)."""
        values = wide(args[0])
        count = values.numel() // values.shape[1]
        if count < 2:
            raise InputError(
                f"batches: layer {name!r} gets one value per channel, which has no variance; give "
                "batches of two images or more"
            )
        spread, mean = torch.var_mean(values, [d for d in range(values.ndim) if d != 1])
        spread, mean = spread.double().cpu(), mean.double().cpu()
        total = self.count + count
        shift = mean - self.mean
        self.squares = (
            self.squares + spread * (count - 1) + shift.square() * (self.count * count / total)
        )
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def statistics(self) -> dict[str, Tensor]:
        """Return the running mean, and the running variance, unbiased as BatchNorm keeps it."""
        return {"running_mean": self.mean, "running_var": self.squares / (self.count - 1)}


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether a layer of the model keeps running statistics.

    Examples:
        >>> has_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        True
    """
    return bool(_layers(model))


def statistics_differ(
    model: nn.Module, base: Mapping[str, Tensor], experts: Iterable[Mapping[str, Tensor]]
) -> bool:
    """Return whether the running statistics of an expert are not those of the base.

    Experts that were trained with frozen statistics have those of the base. They fit networks
    merged from these experts better than any that few images give. An expert that is stored in
    another type has kept them if its own are the base's, rounded to that type, to the bit.

    Args:
        model: The network; its layers tell which tensors are running statistics.
        base: Weights of the base under the names of `model.state_dict()`.
        experts: Weights of every expert, likewise.

    Examples:
        >>> layer = nn.BatchNorm1d(2)
        >>> base = layer.state_dict()
        >>> moved = {**base, "running_mean": torch.tensor([0.0, 1.0])}
        >>> statistics_differ(layer, base, [base]), statistics_differ(layer, base, [base, moved])
        (False, True)
        >>> half = {name: tensor.half() for name, tensor in base.items()}
        >>> statistics_differ(layer, base, [half])
        False
    """
    names = [
        f"{name}.{key}" if name else key
        for name in _layers(model)
        for key in ("running_mean", "running_var")
    ]
    pairs = ((expert[name], base[name]) for expert in experts for name in names)
    return any(not torch.equal(own, kept.to(own)) for own, kept in pairs)


def _layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers that keep running statistics."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


@contextmanager
def batch_statistics(model: nn.Module, active: bool = True) -> Iterator[None]:
    """Let BatchNorm layers normalise by the statistics of each batch, all else as in evaluation.

    The layers still update their running statistics; the caller decides whether to keep them.

    Examples:
        >>> network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).eval()
        >>> with batch_statistics(network), torch.no_grad():
        ...     network(torch.tensor([[4.0, 0.0], [6.0, 2.0]])).round(decimals=3)
        tensor([[-1., -1.], [ 1., 1.]])
    """
    modes = {module: module.training for module in model.modules()} if active else {}
    layers = set(_layers(model).values())
    for module in modes:
        module.training = module in layers
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def recalibrated(
    model: nn.Module, weights: Mapping[str, Tensor], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Return weights with BatchNorm statistics measured on some inputs.

    A merged network's activations are distributed like no expert's, so their statistics have to
    be measured anew (Jordan et al. 2023, "REPAIR", section 3). Every batch goes through the
    network once; each BatchNorm normalises by the batch's own statistics, and all other layers
    work as in evaluation. A layer's mean and unbiased variance are those of all its inputs
    together: every image and position counts alike, even if batches differ in size. With one
    batch, they are exactly what training mode sees. With more, the inputs of deeper layers depend
    on the division into batches, so use batches as large as memory allows.

    Args:
        model: The network; it comes back unchanged, modes and buffers included.
        weights: Tensors for all names of `model.state_dict()`; they are not changed.
        batches: Normalised inputs [n, ...], each of two images or more.

    Returns:
        All weights, with types and devices as given, and with new `running_mean` and
        `running_var` of every layer that the inputs reach.

    Raises:
        InputError: There are no batches, or a layer gets a single value per channel.
        RuntimeError: A weight is missing or unknown.

    Examples:
        >>> network = nn.BatchNorm1d(1)
        >>> batches = [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [6.0]])]
        >>> weights = recalibrated(network, network.state_dict(), batches)
        >>> weights["running_mean"], weights["running_var"]
        (tensor([3.]), tensor([4.6667]))
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    own = {name: _copy(t, device) for name, t in {**_constants(model), **weights}.items()}
    moments = {name: _Moments() for name in _layers(model)}
    hooks = {name: partial(seen.add, name) for name, seen in moments.items()}
    empty = True
    with batch_statistics(model), hooked(model, hooks):
        for batch in batches:
            functional_call(model, own, (batch.to(device),), strict=True, tie_weights=False)
            empty = False
    if empty:
        raise InputError("batches: BatchNorm cannot be recalibrated on none; give some images")
    return {**weights, **_statistics(moments, weights)}


def _constants(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that no checkpoint holds, such as position indices."""
    stored = set(model.state_dict())
    return {name: buffer for name, buffer in model.named_buffers() if name not in stored}


def _copy(tensor: Tensor, device: torch.device) -> Tensor:
    """Return an independent copy, as BatchNorm writes into its buffers."""
    return (wide(tensor) if tensor.is_floating_point() else tensor).to(device, copy=True)


def _statistics(
    moments: Mapping[str, _Moments], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the statistics of the layers reached, with types and devices of the weights."""
    return {
        full: value.to(weights[full])
        for name, seen in moments.items()
        if seen.count
        for key, value in seen.statistics().items()
        for full in [f"{name}.{key}" if name else key]
    }
