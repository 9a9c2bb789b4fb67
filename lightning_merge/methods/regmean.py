"""RegMean: linear layers merged to reproduce the experts' outputs."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lightning_merge.core.checks import require_choice, require_in
from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Facts, Needs
from lightning_merge.core.networks.expert_networks import ExpertNetworks, mean_of, run_with
from lightning_merge.core.networks.gram import Regression, Visit, take_inputs, with_share
from lightning_merge.core.networks.linear_inputs import LinearInputs, Rows
from lightning_merge.core.networks.tracing import evaluating
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.tiles import Span
from lightning_merge.methods.base import MergeMethod, Resources, Update

Layers = Literal["all", "linear_modules"]
BATCH = 32
"""Number of inputs that pass through the network at a time."""
MEMORY = 5 * 2**27
"""Limit in bytes of the sums of layers regressed in one pass, 0.625 GiB."""


@dataclass(frozen=True)
class RegMean(MergeMethod):
    """Regression of every linear layer on its experts. Needs unlabelled batches of every task.

    The merged layer minimises sum_k ||X_k W^T - X_k W_k^T||^2, X_k [n_k, in] being the layer's
    inputs in expert k on inputs of task k: the update is (sum_k G_k)^-1 sum_k G_k tau_k^T with
    G_k = X_k^T X_k / n_k, whose off-diagonal entries are first multiplied by `reduce`. It applies
    to linear layers, all projections of attention, and convolutions, whose inputs are patches;
    other tensors are averaged. Directions that the inputs do not determine, as with fewer inputs
    than `in`, are averaged too: the regression is on differences from the average, with a ridge of
    1e-8 of the mean diagonal.

    Layers that share a weight count as one layer, with the inputs of all. After transforms, the
    inputs are those of the transformed experts.

    Cost: five readings (3K + 1 with transforms) and, for each expert, one forward pass over its
    own inputs. The sums of a layer, in float64, are half of its Gram matrix [in, in] and the
    right-hand side [in, out]. If all layers need more than 0.625 GiB, they are regressed in rounds
    with separate passes, two for ViT-B/32. Memory also holds two networks and the solved updates.

    Reference: Jin et al. 2023, "Dataless Knowledge Fusion by Merging Weights of Language Models".
    The published code handles only modules of type `nn.Linear`: neither the projections of
    `nn.MultiheadAttention` nor convolutions. 0.95 is the usual factor for CLIP.

    Args:
        reduce: Factor of the off-diagonal entries of Gram matrices, in [0, 1].
        layers: Layers to regress, "all" or only "linear_modules", as published.

    Raises:
        InputError: A value is out of bounds.

    Examples:
        >>> import torch
        >>> model, base = nn.Linear(2, 1, bias=False), {"weight": torch.zeros(1, 2)}
        >>> a, b = {"weight": torch.tensor([[1.0, 9.0]])}, {"weight": torch.tensor([[9.0, 3.0]])}
        >>> inputs = {"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([[0.0, 1.0]])}
        >>> RegMean()(base, {"a": a, "b": b}, model=model, batches=inputs)["weight"]
        tensor([[1., 3.]])
    """

    reduce: float = 0.95
    layers: Layers = "all"
    facts: ClassVar[Facts] = Facts(
        reference="Jin et al. 2023",
        arxiv="2212.09849",
        needs=Needs.INPUTS_OF_EVERY_TASK,
        readings=5,
        work="K forward passes over own inputs, 1 linear system a layer; for every 0.625 GiB of "
        "sums a reading and the passes again",
        memory="3 networks and 1 GiB",
    )

    def __post_init__(self) -> None:
        require_in("[0, 1]", reduce=self.reduce)
        require_choice(get_args(Layers), layers=self.layers)

    def plan(self, vectors: TaskVectors, resources: Resources) -> Update:
        """Run every expert over its inputs, then solve for every layer."""
        inputs = resources.task_inputs("RegMean", vectors.tasks)
        networks = ExpertNetworks(resources.network("RegMean"), vectors)
        networks.check(next(iter(inputs.values())))
        watched = regressed(networks, self.layers)
        require_found(networks.applied(watched, next(iter(inputs.values()))[:1]))
        solved = {}
        for names in _groups(networks, watched):
            for name, regression in self._regress(networks, names, inputs).items():
                last = networks.task_vector(name, len(inputs) - 1)
                average = networks.task_vectors(name).double().mean(0)
                solved[networks.stored[name]] = regression.solve(last, average)
        return updates(solved)

    def _regress(
        self, networks: ExpertNetworks, names: Sequence[str], inputs: Mapping[str, Tensor]
    ) -> dict[str, Regression]:
        """Return the sums of some weights' regressions over all experts."""
        regressions: dict[str, Regression] = {}
        for index, task in enumerate(networks.vectors.tasks):
            for name, regression in regressions.items():
                before, after = (networks.task_vector(name, i) for i in (index - 1, index))
                regression.advance(before, after)
            self._take(networks, names, index, inputs[task], regressions)
        return regressions

    def _take(
        self,
        networks: ExpertNetworks,
        watched: Sequence[str],
        index: int,
        inputs: Tensor,
        regressions: dict[str, Regression],
    ) -> None:
        """Take an expert's inputs of all layers into their regressions."""
        state = networks.expert(index)

        def run(names: Iterable[str], visit: Visit) -> None:
            own = {name: state[name] for name in names}
            for part in inputs.split(BATCH):
                show = partial(with_share, visit, len(part) / len(inputs))
                with evaluating(networks.model), LinearInputs(own, show):
                    run_with(networks.model, state, part)

        def begin(name: str, rows: Rows) -> Regression:
            return Regression(state[name].numel(), rows, self.reduce)

        take_inputs(run, watched, regressions, begin)


def _groups(networks: ExpertNetworks, names: Sequence[str]) -> Iterator[list[str]]:
    """Yield the weights that an expert has changed, in groups of about `MEMORY` bytes of sums."""
    group: list[str] = []
    used = 0
    for name in names:
        stored, base = networks.stored[name], networks.vectors.base
        if networks.vectors.stored.is_kept(stored):
            continue
        width, entries = math.prod(base.shape(stored)[1:]), base.numel(stored)
        needed = 4 * width**2 + 8 * entries  # half of a matrix, and one, in float64
        if group and used + needed > MEMORY:
            yield group
            group, used = [], 0
        group.append(name)
        used += needed
    if group:
        yield group


def regressed(networks: ExpertNetworks, layers: Layers) -> list[str]:
    """Return the names of tensors that may be weights of the given layers.

    Examples:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.LayerNorm(1))
        >>> weights = model.state_dict()
        >>> networks = ExpertNetworks(model, TaskVectors(weights, {"cars": weights}))
        >>> regressed(networks, "linear_modules")
        ['0.weight']
    """
    if layers == "all":
        return networks.merged
    linear = {
        networks.ties[f"{name}.weight"]
        for name, module in networks.model.named_modules()
        if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
    }
    return [name for name in networks.merged if name in linear]


def require_found(layers: Collection[str]) -> None:
    """Check that at least one layer was found.

    Raises:
        InputError: None was found.

    Examples:
        >>> require_found([])
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: model: it applies no linear layer or convolution
        to merge by regression; choose another method, or layers='all'
    """
    if not layers:
        raise InputError(
            "model: it applies no linear layer or convolution to merge by regression; choose "
            "another method, or layers='all'"
        )


def updates(solved: Mapping[str, Tensor]) -> Update:
    """Return the function that looks up solved updates [numel] and averages other tensors.

    Examples:
        >>> import torch
        >>> update = updates({"solved": torch.tensor([7.0, 8.0])})
        >>> vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> update(Span("solved", 0, 2), vectors), update(Span("other", 0, 2), vectors)
        (tensor([7., 8.]), tensor([2., 3.]))
    """

    def update(span: Span, tile: Tensor) -> Tensor:
        if span.name in solved:
            return solved[span.name][span.start : span.stop].to(tile, copy=True)
        return mean_of(tile)

    return update
