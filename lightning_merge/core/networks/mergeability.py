"""Mergeability of experts by M-Loss: of all of them, of every pair, layer by layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_merge.core.checkpoints.checkpoint import as_checkpoint, select
from lightning_merge.core.checks import require_choice
from lightning_merge.core.errors import InputError
from lightning_merge.core.networks.affine import Activation, AffineLayer, affine_layers
from lightning_merge.core.networks.hooks import Args, Kwargs, hooked
from lightning_merge.core.networks.m_loss import MLosses, layer_m_losses, m_losses, relative_m_loss
from lightning_merge.core.networks.tracing import evaluating
from lightning_merge.core.vectors.task_vectors import TaskVectors, wide
from lightning_merge.core.vectors.validate import check_experts

LayerInputs = Literal["merged", "base"]

_CHUNK = 2**22  # pre-activations of all experts in memory at a time: 16 MiB in float32


class LayerMergeability(NamedTuple):
    """M-Loss of one layer with d nodes.

    Attributes:
        activation: Name of the activation's class.
        all: M-Losses of all experts averaged together.
        pairwise: Layer M-Loss of every pair averaged half and half, [K, K], symmetric, 0 on the
            diagonal.
        pairwise_normalized: The same, normalised.
        pairwise_norm: Mean norm of the merged output of every pair, 0 on the diagonal.

    Examples:
        >>> losses = m_losses(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 5.0]]))
        >>> pairs = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> LayerMergeability("ReLU", losses, pairs, pairs / 5, 5 * pairs).pairwise_relative
        tensor([[0.0000, 0.2000], [0.2000, 0.0000]])
    """

    activation: str
    all: MLosses
    pairwise: Tensor
    pairwise_normalized: Tensor
    pairwise_norm: Tensor

    @property
    def pairwise_relative(self) -> Tensor:
        """`relative_m_loss` of every pair, [K, K]."""
        return relative_m_loss(self.pairwise, self.pairwise_norm)


@dataclass(frozen=True)
class Mergeability:
    """Result of `mergeability`; the lower a number, the closer merging is to ensembling.

    The summaries are means over layers of `relative_m_loss`, the mean layer M-Loss over the mean
    norm of the merged output. It has no unit, so every layer counts alike however large its
    activations are. This measure is ours: the normalised layer M-Loss of the paper (Definition 3.5)
    divides at every sample. If the merged layer outputs nothing at some samples, it divides by eps
    alone there, and one layer may exceed the others by hundreds of times. Summaries of the paper's
    measure are `*_normalized`.

    Attributes:
        tasks: The experts' names.
        layers: M-Loss by the name of the layer's linear or convolutional module, in the order of
            execution.

    Examples:
        >>> losses = m_losses(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 5.0]]))
        >>> pairs = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> layer = LayerMergeability("ReLU", losses, pairs, pairs / 5, 5 * pairs)
        >>> round(Mergeability(("mnist", "cars"), {"fc": layer}).overall, 3)
        0.2
    """

    tasks: tuple[str, ...]
    layers: dict[str, LayerMergeability]

    @property
    def overall(self) -> float:
        """M-Loss of all experts averaged together."""
        return float(self._mean(lambda layer: layer.all.layer_relative))

    @property
    def overall_normalized(self) -> float:
        """M-Loss of all experts averaged together, by Definition 3.5."""
        return float(self._mean(lambda layer: layer.all.layer_normalized))

    @property
    def pairwise(self) -> Tensor:
        """M-Loss of every pair averaged half and half, [K, K]."""
        return self._mean(lambda layer: layer.pairwise_relative)

    @property
    def pairwise_normalized(self) -> Tensor:
        """M-Loss of every pair averaged half and half, [K, K], by Definition 3.5."""
        return self._mean(lambda layer: layer.pairwise_normalized)

    @property
    def experts(self) -> dict[str, float]:
        """Mean M-Loss of each expert's pairs."""
        means = self.pairwise.sum(1) / (len(self.tasks) - 1)
        return dict(zip(self.tasks, means.tolist(), strict=True))

    def _mean(self, value: Callable[[LayerMergeability], Tensor]) -> Tensor:
        """Return the mean over the layers."""
        return torch.stack([value(layer) for layer in self.layers.values()]).mean(0)


@torch.no_grad()
def mergeability(
    base: Mapping[str, Tensor],
    experts: Mapping[str, Mapping[str, Tensor]],
    model: nn.Module,
    inputs: Tensor,
    layer_inputs: LayerInputs = "merged",
) -> Mergeability:
    """Measure layer and node M-Loss of experts and of all pairs of them, in one pass.

    The network runs once, with the weights of the base or the mean of all experts. At every layer
    of `affine_layers`, all K experts' pre-activations h_k are computed at this network's input x
    of the layer: h_k = W_k x + b_k, or BN_k(W_k * x) where BatchNorm follows a convolution. Each
    expert uses its own BatchNorm, including statistics, as if it were folded into the convolution.
    A node is an output feature or channel; tokens and positions are samples. The network runs in
    its own precision, losses are computed in float32 or wider.

    Reference: Wang et al. 2025, "M-Loss", Definitions 3.3 to 3.6.

    Args:
        base: Pretrained weights.
        experts: Task to fine-tuned weights, two or more.
        model: The network; it comes back unchanged. The weights have the names of its state dict,
            with an additional prefix or without one of its prefixes; other tensors are ignored.
        inputs: Unlabelled inputs of the model, [n, ...], of any floating type.
        layer_inputs: "merged", the mean of all experts, or "base".

    Raises:
        InputError: Weights do not fit the model or each other or are not finite, `layer_inputs`
            is unknown, inputs are empty, not finite or of a shape that the model rejects, or no
            layer is followed by an activation.

    Examples:
        >>> network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
        >>> base, up, down = ({"0.weight": torch.tensor([[w]])} for w in (1.0, 3.0, -1.0))
        >>> result = mergeability(base, {"up": up, "down": down}, network, torch.ones(4, 1))
        >>> float(result.layers["0"].all.layer)  # relu((3 - 1) / 2) against (3 + 0) / 2
        0.5
    """
    require_choice(("merged", "base"), layer_inputs=layer_inputs)
    inputs = _fitting(inputs, model)
    own = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
    weights = select(as_checkpoint(base), own)
    fitting = {task: select(as_checkpoint(expert), own) for task, expert in experts.items()}
    check_experts(weights, fitting, finite=False)  # values are checked when they are read
    vectors = TaskVectors(weights, fitting)
    layers = affine_layers(model, inputs[:1])
    if not layers:
        raise InputError(
            "model: none of its linear or convolutional layers feeds an activation module, so "
            "M-Loss has nothing to compare"
        )
    if layer_inputs == "merged":
        state = {name: vectors.stored.stack(name).mean(0).to(like) for name, like in own.items()}
    else:
        state = {name: vectors.base[name].to(like) for name, like in own.items()}
    return Mergeability(vectors.tasks, _measure(model, state, inputs, layers, vectors))


def _fitting(inputs: Tensor, model: nn.Module) -> Tensor:
    """Check the inputs and move them to the model's device and floating type."""
    if not len(inputs):
        raise InputError("inputs: empty; give some images, e.g. 128")
    if not bool(inputs.isfinite().all()):
        raise InputError("inputs: some are NaN or infinite; leave them out")
    example = next((p for p in model.parameters() if p.is_floating_point()), inputs)
    inputs = inputs.to(example if inputs.is_floating_point() else example.device)
    try:
        with evaluating(model):
            model(inputs[:1])
    except (RuntimeError, ValueError, AssertionError, IndexError) as fault:
        raise InputError(
            f"inputs of shape {list(inputs.shape)}: the model does not accept them "
            f"({str(fault).splitlines()[0]}); give what it was trained on"
        ) from fault
    return inputs


def _measure(
    model: nn.Module,
    state: Mapping[str, Tensor],
    inputs: Tensor,
    layers: list[AffineLayer],
    vectors: TaskVectors,
) -> dict[str, LayerMergeability]:
    """Run the network once with `state`, measuring each layer when it is first called."""
    waiting = {layer.names[0]: layer for layer in layers}
    measured: dict[str, LayerMergeability] = {}

    def visit(name: str, module: nn.Module, args: Args, _: Kwargs) -> None:
        # Each only once: the experts' modules below are this one with other weights.
        if layer := waiting.pop(name, None):
            given = wide(args[0])
            measured[name] = _layer(layer, given, _stacks(layer, vectors, given))
            if not bool(measured[name].all.layer.isfinite()):
                raise InputError(
                    f"model: the output of layer {name} on these inputs is not finite; run it in a "
                    "wider type, or check the weights"
                )

    hooks = {name: partial(visit, name) for name in waiting}
    with evaluating(model), hooked(model, hooks):
        functional_call(model, dict(state), (inputs,), tie_weights=False)
    return measured


def _stacks(layer: AffineLayer, vectors: TaskVectors, like: Tensor) -> list[dict[str, Tensor]]:
    """Return the experts' tensors [K, ...] of each module of a layer, by their names within it."""
    return [
        {
            own: vectors.stored.stack(f"{name}.{own}").to(like)
            for own, tensor in module.state_dict().items()
            if tensor.is_floating_point()
        }
        for name, module in zip(layer.names, layer.modules, strict=True)
    ]


def _layer(
    layer: AffineLayer, inputs: Tensor, stacks: list[dict[str, Tensor]]
) -> LayerMergeability:
    """Return the M-Losses of one layer at its inputs, in chunks."""
    total: list[Tensor] = []
    assert layer.activation is not None
    for share, hidden in layer.pre_activations(inputs, stacks, _CHUNK):
        terms = [share * term.double() for term in _chunk_losses(hidden, layer.activation)]
        total = [a + b for a, b in zip(total, terms, strict=True)] if total else terms
    losses, pairs = [term.cpu() for term in total[:-3]], [term.cpu() for term in total[-3:]]
    return LayerMergeability(type(layer.activation).__name__, MLosses(*losses), *pairs)


def _chunk_losses(hidden: Tensor, activation: Activation) -> list[Tensor]:
    """Return the `MLosses` of all experts [K, n, d], and the last three of their pairs [K, K]."""
    outputs = activation(hidden.clone())  # the activation may work in place
    losses = m_losses(activation(hidden.mean(0)), outputs.mean(0))
    pairwise = hidden.new_zeros(3, len(hidden), len(hidden))
    for i, j in combinations(range(len(hidden)), 2):
        merged = activation((hidden[i] + hidden[j]) / 2)
        pair = layer_m_losses(merged, (outputs[i] + outputs[j]) / 2)
        pairwise[:, i, j] = pairwise[:, j, i] = torch.stack(pair)
    return [*losses, *pairwise]
