"""RegMean++: RegMean in which each block's inputs come from the blocks merged before it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args

from torch import Tensor, nn
from torch.func import functional_call

from lightning_merge.core.checks import require_choice, require_in
from lightning_merge.core.facts import Facts, Needs
from lightning_merge.core.networks.expert_networks import ExpertNetworks
from lightning_merge.core.networks.gram import Regression, Visit, take_inputs, with_share
from lightning_merge.core.networks.linear_inputs import LinearInputs, Rows
from lightning_merge.core.networks.padding import padded
from lightning_merge.core.networks.tracing import (
    arguments_of,
    called_modules,
    evaluating,
    repeated_blocks,
)
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.methods.base import MergeMethod, Resources, Update
from lightning_merge.methods.regmean import BATCH, Layers, regressed, require_found, updates

Unit = Literal["block", "layer"]


@dataclass(frozen=True)
class RegMeanPlusPlus(MergeMethod):
    """RegMean with the activations of the merged prefix. Needs unlabelled batches of every task.

    Units are merged in the order in which the network calls them. The inputs of task k pass
    through the units merged so far; expert k's next unit then runs on the result, and the inputs
    X_k of its layers enter the regression of `RegMean`. Within a unit, layers therefore see the
    outputs of the expert's own preceding layers. A unit is a block of a transformer or ResNet;
    outside blocks, each layer is a unit. A weight that several units share is averaged, as it has
    no place in that order.

    Cost: four readings, and for each unit one pass of all inputs up to it: with U units about
    U / 2 forward passes and one more through the experts' units. Memory holds one network and one
    unit of all experts with its Gram matrices; activations are not stored.

    Reference: Nguyen et al. 2025, "RegMean++". The published code merges linear layers
    inside blocks by regression (`layers="linear_modules"`), averages the embedding, and leaves
    everything after the last block at the base; here that is averaged, too.

    Args:
        reduce: Factor of the off-diagonal entries of Gram matrices, in [0, 1].
        layers: As in `RegMean`.
        unit: "block" as published, or "layer", with which every layer sees the merged prefix (an
            attention module counts as one layer).

    Raises:
        InputError: A value is out of bounds.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> base = {"0.weight": torch.zeros(1, 2), "1.weight": torch.zeros(1, 1)}
        >>> a = {"0.weight": torch.tensor([[1.0, 9.0]]), "1.weight": torch.tensor([[2.0]])}
        >>> b = {"0.weight": torch.tensor([[9.0, 3.0]]), "1.weight": torch.tensor([[4.0]])}
        >>> inputs = {"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([[0.0, 1.0]])}
        >>> merged = RegMeanPlusPlus()(base, {"a": a, "b": b}, model=model, batches=inputs)
        >>> merged["0.weight"], merged["1.weight"]  # (1 * 2 + 9 * 4) / (1 + 9)
        (tensor([[1., 3.]]), tensor([[3.8000]]))
    """

    reduce: float = 0.95
    layers: Layers = "all"
    unit: Unit = "block"
    facts: ClassVar[Facts] = Facts(
        reference="Nguyen et al. 2025",
        arxiv="2508.03121",
        needs=Needs.INPUTS_OF_EVERY_TASK,
        readings=4,
        work="for U blocks K (U / 2 + 1) forward passes over own inputs",
    )

    def __post_init__(self) -> None:
        require_in("[0, 1]", reduce=self.reduce)
        require_choice(get_args(Layers), layers=self.layers)
        require_choice(get_args(Unit), unit=self.unit)

    def plan(self, vectors: TaskVectors, resources: Resources) -> Update:
        """Merge unit by unit, in the order of execution."""
        inputs = list(resources.task_inputs("RegMean++", vectors.tasks).values())
        networks = ExpertNetworks(resources.network("RegMean++"), vectors)
        networks.check(inputs[0])
        merged = networks.average()
        solved: dict[str, Tensor] = {}
        units = self._units(networks, inputs[0][:1])
        require_found(units)
        for unit, weights in units.items():
            for name, update in self._regress(networks, merged, unit, weights, inputs).items():
                weight = networks.base(name) + update.view(merged[name].shape)
                merged[name] = networks.like(name, weight)
                solved[networks.stored[name]] = update
        return updates(solved)

    def _units(self, networks: ExpertNetworks, example: Tensor) -> dict[str, list[str]]:
        """Return the modules in order of their calls, and the weights merged in each."""
        model = networks.model
        seen: dict[str, None] = {}
        parameters = dict(model.named_parameters(remove_duplicate=False))
        watched = {n: parameters[n] for n in regressed(networks, self.layers) if n in parameters}
        with evaluating(model), LinearInputs(watched, lambda name, rows: seen.setdefault(name)):
            model(example)
        called = called_modules(model, example)
        blocks = repeated_blocks(model) if self.unit == "block" else set()
        units: dict[str, list[str]] = {name: [] for name in called}
        for weight in seen:
            names = [name for name, first in networks.ties.items() if first == weight]
            owner, *others = {_owner(name, called, blocks) for name in names}
            if not others:
                units[owner].append(weight)
        return {unit: weights for unit, weights in units.items() if weights}

    def _regress(
        self,
        networks: ExpertNetworks,
        merged: Mapping[str, Tensor],
        unit: str,
        weights: Sequence[str],
        inputs: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Return the updates of one unit's weights, given the merged prefix."""
        prefix = f"{unit}." if unit else ""
        inside = {name: first for name, first in networks.ties.items() if name.startswith(prefix)}
        stacks = networks.stacks(set(inside.values()))
        vectors = {name: networks.task_vectors(name) for name in weights}
        regressions: dict[str, Regression] = {}
        for index, images in enumerate(inputs):
            for name, regression in regressions.items():
                regression.advance(*vectors[name][index - 1 : index + 1])
            own = {name: networks.like(name, stack[index]) for name, stack in stacks.items()}
            state = {name.removeprefix(prefix): own[first] for name, first in inside.items()}
            run = partial(_run, networks.model, merged, unit, state, own, images)
            begin = partial(_begin, vectors, self.reduce)
            take_inputs(run, weights, regressions, begin)
        return {
            n: r.solve(vectors[n][-1], vectors[n].double().mean(0)) for n, r in regressions.items()
        }


def _begin(vectors: Mapping[str, Tensor], reduce: float, name: str, rows: Rows) -> Regression:
    """Return an empty regression of a weight."""
    return Regression(vectors[name][0].numel(), rows, reduce)


def _owner(weight: str, called: Sequence[str], blocks: set[str]) -> str:
    """Return the unit of a weight: its block if any, else the innermost module called."""
    parts = weight.split(".")[:-1]
    above = [".".join(parts[:size]) for size in range(len(parts), -1, -1)]
    inside = [name for name in above if name in blocks and name in called]
    return inside[0] if inside else next(name for name in above if name in called)


def _run(
    model: nn.Module,
    merged: Mapping[str, Tensor],
    unit: str,
    state: dict[str, Tensor],
    own: Mapping[str, Tensor],
    images: Tensor,
    names: Iterable[str],
    visit: Visit,
) -> None:
    """Visit the inputs of an expert's unit, run on the merged prefix's output."""
    module, watched = model.get_submodule(unit), {name: own[name] for name in names}
    for part in images.split(BATCH):
        args, kwargs, tokens = arguments_of(model, merged, part, unit)
        show = partial(with_share, visit, len(part) / len(images))
        with evaluating(module), padded(*tokens), LinearInputs(watched, show):
            functional_call(module, state, args, kwargs, tie_weights=False)
