"""RegMean: linear layers merged so that their outputs stay those of the experts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lightning_merge.core.errors import InputError
from lightning_merge.core.expert_networks import ExpertNetworks, mean_of, run_with
from lightning_merge.core.gram import Grams, Regression
from lightning_merge.core.linear_inputs import LinearInputs
from lightning_merge.core.task_vectors import Span, TaskVectors
from lightning_merge.core.tracing import evaluating
from lightning_merge.methods.base import MergeMethod, Resources, Transform, Update
from lightning_merge.methods.checks import require_between, require_choice

Layers = Literal["all", "linear_modules"]
BATCH = 32
"""Inputs that pass through the network at a time."""


@dataclass(frozen=True)
class RegMean(MergeMethod):
    """Regression of every linear layer on its experts. Needs unlabelled batches of every task.

    The merged layer minimises sum_k ||X_k W^T - X_k W_k^T||^2, X_k [n_k, in] being the layer's
    inputs in expert k on inputs of task k: the update is (sum_k G_k)^-1 sum_k G_k tau_k^T with
    G_k = X_k^T X_k / n_k, whose entries off the diagonal are multiplied with `reduce` first.
    Layers are linear ones, all projections of attention, and convolutions, whose inputs are
    patches; other tensors are averaged. What the inputs do not determine, as with fewer inputs
    than `in`, is averaged as well: the regression is that of the differences from the average,
    with 1e-8 of the mean diagonal as a ridge.

    Layers that share a weight are one layer, with the inputs of all.

    Cost: three readings (behind transforms 2K + 1), K experts times one forward pass over their
    own inputs, and a float64 Gram matrix [in, in] per layer; their sums over experts are in memory
    for all layers.

    Reference: Jin et al. 2023, "Dataless Knowledge Fusion by Merging Weights of Language Models".
    The published code sees modules of type `nn.Linear` only: not the projections of
    `nn.MultiheadAttention`, no convolution. 0.95 is the factor in use for CLIP.

    Args:
        reduce: Factor of the Gram matrices off their diagonal, in [0, 1].
        layers: "all", or only "linear_modules" as published.
        transforms: Applied to the task vectors first; inputs are then those of the experts
            they stand for.

    Raises:
        InputError: A value is out of its bounds.
    """

    reduce: float = 0.95
    layers: Layers = "all"
    transforms: Sequence[Transform] = ()
    reference: ClassVar[str] = "Jin et al. 2023, arXiv:2212.09849"
    cost: ClassVar[str] = "3 readings, K forward passes over own inputs, 1 linear system a layer"
    needs: ClassVar[str] = "unlabelled batches of every task"

    def __post_init__(self) -> None:
        require_between(0, 1, reduce=self.reduce)
        require_choice(get_args(Layers), layers=self.layers)

    def plan(self, vectors: TaskVectors, resources: Resources) -> Update:
        """Run every expert over its inputs, then solve for every layer."""
        inputs = resources.task_inputs("RegMean", vectors.tasks)
        networks = ExpertNetworks(resources.network("RegMean"), vectors)
        networks.check(next(iter(inputs.values())))
        watched = regressed(networks, self.layers)
        regressions: dict[str, Regression] = {}
        reached: list[set[str]] = []
        for index, task in enumerate(vectors.tasks):
            grams = _grams(networks, watched, index, inputs[task])
            for name in grams.sums:
                vector = networks.task_vector(name, index)
                regression = regressions.setdefault(name, Regression())
                regression.add(grams.means(name, self.reduce), vector)
            reached.append(set(grams.sums))
        for index, names in enumerate(reached):
            for name in regressions.keys() - names:
                regressions[name].add_idle(networks.task_vector(name, index))
        require_found(regressions)
        return updates({networks.stored[n]: regressions.pop(n).solve() for n in list(regressions)})


def regressed(networks: ExpertNetworks, layers: Layers) -> list[str]:
    """Names of the tensors that may be weights of the layers asked for."""
    if layers == "all":
        return networks.merged
    linear = {
        networks.ties[f"{name}.weight"]
        for name, module in networks.model.named_modules()
        if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
    }
    return [name for name in networks.merged if name in linear]


def require_found(layers: Mapping[str, object]) -> None:
    """At least one layer has been found.

    Raises:
        InputError: There is none.
    """
    if not layers:
        raise InputError(
            "model: it applies no linear layer or convolution that could be merged by regression; "
            "choose another method, or layers='all'"
        )


def updates(solved: Mapping[str, Tensor]) -> Update:
    """The function that gives the solved updates [numel], and the average of other tensors."""

    def update(span: Span, tile: Tensor) -> Tensor:
        if span.name in solved:
            return solved[span.name][span.start : span.stop].to(tile, copy=True)
        return mean_of(tile)

    return update


def _grams(networks: ExpertNetworks, watched: list[str], index: int, inputs: Tensor) -> Grams:
    """The Gram matrices of one expert's layers on its inputs."""
    grams, state = Grams(), networks.expert(index)
    with evaluating(networks.model), LinearInputs({n: state[n] for n in watched}, grams.add):
        for part in inputs.split(BATCH):
            run_with(networks.model, state, part)
    return grams
