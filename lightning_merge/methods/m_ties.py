"""M-TIES: TIES in which nodes keep less the more averaging their weights fails."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_merge.core.checkpoints.names import match_names
from lightning_merge.core.checks import require_choice, require_finite, require_in
from lightning_merge.core.dtypes import wide_dtype
from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Facts, Needs
from lightning_merge.core.networks.affine import (
    Activation,
    AffineLayer,
    affine_chains,
    has_rows_of_nodes,
)
from lightning_merge.core.networks.m_loss import (
    ACTIVATIONS,
    Reduce,
    affine_node_m_loss,
    linear_node_m_loss,
    row_keep_ratios,
)
from lightning_merge.core.networks.padding import unpadded
from lightning_merge.core.networks.tracing import input_errors, run_visiting, tied_names
from lightning_merge.core.seeding import generator_for
from lightning_merge.core.vectors.elect import Combine, disjoint_merge, elect_signs
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.tiles import Span
from lightning_merge.core.vectors.trim import row_trim
from lightning_merge.methods.base import MergeMethod, Resources, Update, Weights
from lightning_merge.methods.streaming import InMemory, Sink, merge_each, merge_one
from lightning_merge.methods.ties import TrimScope, trimming

LayerInputs = Literal["merged", "base"]
NodeOrder = Literal["loss", "random", "uniform", "reversed"]


@dataclass(frozen=True)
class MTiesAnalysis:
    """The merged weights and the ranking behind them, by name of the layer's weight.

    Attributes:
        merged: Merged weights by name.
        losses: Node M-Loss of every ranked layer, [out], in network order.
        keep_ratios: Fraction of its inputs that each node kept, [out].

    Examples:
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
        >>> experts = {"a": {"0.weight": torch.tensor([[1.0], [4.0]])}}
        >>> experts["b"] = {"0.weight": torch.tensor([[1.0], [-2.0]])}
        >>> resources = Resources(model, torch.ones(1, 1))
        >>> analysis = MTies().analyse({"0.weight": torch.zeros(2, 1)}, experts, resources)
        >>> analysis.losses["0.weight"]  # the second is |relu(4 / 2 - 2 / 2) - relu(4) / 2|
        tensor([0., 1.])
    """

    merged: dict[str, Tensor]
    losses: dict[str, Tensor]
    keep_ratios: dict[str, Tensor]


class RankedByMLoss(MergeMethod):
    """Base class of M-TIES and M-DARE: keep ratios of nodes from one pass over the network.

    Subclasses are dataclasses with these fields; their `updating` defines how ratios are used.

    Examples:
        >>> from lightning_merge.methods import MDare
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
        >>> experts = {"a": {"0.weight": torch.tensor([[1.0], [4.0]])}}
        >>> experts["b"] = {"0.weight": torch.tensor([[1.0], [-2.0]])}
        >>> method, resources = MDare(keep=0.9, spread=0.4), Resources(model, torch.ones(1, 1))
        >>> method.analyse({"0.weight": torch.zeros(2, 1)}, experts, resources).keep_ratios
        {'0.weight': tensor([0.9000, 0.5000], dtype=torch.float64)}
    """

    name: ClassVar[str]
    facts: ClassVar[Facts] = Facts(
        reference="Wang et al. 2025, M-Loss",
        needs=Needs.INPUTS,
        readings=2,
        merges_in_plan=True,
        work="1 pass of the network",
    )
    keep: float
    spread: float
    layer_inputs: LayerInputs
    reduce: Reduce
    layers: Sequence[int | str] | None
    node_order: NodeOrder
    activation: str | None
    seed: int

    def __post_init__(self) -> None:
        require_in("[0, 1]", keep=self.keep)
        require_in(f"[0, {self.keep}]", spread=self.spread)
        if isinstance(self.layers, str) or self.layers == []:
            raise InputError(f"layers={self.layers!r}: give a list of names or positions, or None")
        require_choice(get_args(LayerInputs), layer_inputs=self.layer_inputs)
        require_choice(get_args(Reduce), reduce=self.reduce)
        require_choice(get_args(NodeOrder), node_order=self.node_order)
        if self.activation is not None:
            require_choice(tuple(ACTIVATIONS), activation=self.activation)

    @abstractmethod
    def updating(self, vectors: TaskVectors, keep_ratios: dict[str, Tensor]) -> Update:
        """Return the function that merges a tile, by row where a tensor has ratios [out].

        Ratios are added while the network runs; a tensor is merged once its ratios are known.
        """

    def plan(self, vectors: TaskVectors, resources: Resources) -> Update:
        """Rank the nodes in one pass over the network."""
        return self._rank(vectors, resources).update

    @torch.no_grad()
    def analyse(
        self, base: Weights, experts: Mapping[str, Weights], resources: Resources
    ) -> MTiesAnalysis:
        """Merge like a call, and return the node losses and keep ratios with the result."""
        vectors = self.task_vectors(base, experts, scope=resources.scope)
        sink = InMemory(vectors.stored.layout(), vectors.device)
        ranking = self._rank_and_merge(vectors, resources, sink)
        return MTiesAnalysis(sink.tensors, ranking.losses, ranking.keep_ratios)

    def _merge(self, vectors: TaskVectors, resources: Resources, sink: Sink) -> None:
        self._rank_and_merge(vectors, resources, sink)

    def _rank_and_merge(self, vectors: TaskVectors, resources: Resources, sink: Sink) -> "_Ranking":
        ranking = self._rank(vectors, resources)
        merge_each(vectors, ranking.update, sink, resources.ties(vectors), ranking.merged)
        return ranking

    def _rank(self, vectors: TaskVectors, resources: Resources) -> "_Ranking":
        model = resources.network(self.name)
        images = resources.inputs(self.name, vectors.tasks)
        layers = self._choose_layers(model, images[:1])
        ranking = _Ranking(self, vectors)
        ranking.run(model, images, layers)
        return ranking

    def _choose_layers(
        self, model: nn.Module, example: Tensor
    ) -> list[tuple[AffineLayer, Activation]]:
        """Return the ranked layers, with their activations."""
        with input_errors(example):
            chains = {
                layer.names[0]: layer
                for layer in affine_chains(model, example)
                if has_rows_of_nodes(layer.modules[0])
            }
        activated = [name for name, layer in chains.items() if layer.activation is not None]
        if not chains or (self.layers is None and not activated):
            raise InputError(self._nothing_to_rank(chains))
        chosen: dict[str, tuple[AffineLayer, Activation]] = {}
        for given in activated if self.layers is None else self.layers:
            if isinstance(given, int) and not -len(activated) <= given < len(activated):
                raise InputError(
                    f"layers: position {given} is out of range; {len(activated)} layers were found"
                )
            name = activated[given] if isinstance(given, int) else given
            if name not in chains:
                raise InputError(
                    f"layers: {name!r} is not a linear or convolutional layer that the model "
                    "calls, with its own weight and, if a normalisation follows, BatchNorm's "
                    f"running statistics; give one such as {', '.join([*chains][:3])}"
                )
            chosen[name] = chains[name], self._activation_of(name, chains[name])
        return [*chosen.values()]

    def _nothing_to_rank(self, chains: Iterable[str]) -> str:
        """Explain that no layer can be ranked by itself; `chains` could be if they are named."""
        known = [*chains][:3]
        remedy = (
            f"name layers such as {', '.join(known)}, and the activation that follows them"
            if known
            else "none could be ranked under any option; choose a method that runs no network"
        )
        return (
            f"layers={self.layers!r}: no linear or convolutional layer of the model feeds an "
            f"activation module; {remedy}"
        )

    def _activation_of(self, name: str, layer: AffineLayer) -> Activation:
        """Return the activation that follows a layer: the one given, or the model's own."""
        activation = layer.activation
        if self.activation is not None:
            activation = ACTIVATIONS[self.activation]
        if activation is None:
            raise InputError(
                f"layers: no activation module follows {name!r}; "
                f"set activation to one of {', '.join(ACTIVATIONS)}"
            )
        return activation


@dataclass(frozen=True)
class MTies(RankedByMLoss):
    """TIES with a keep ratio per node, ranked by M-Loss. Needs unlabelled batches.

    In every linear or convolutional layer with an activation, row j of each expert's task vector
    [out, rest] keeps the fraction keep - spread * rank_j of its inputs, rank_j in [0, 1] ascending
    with the node's M-Loss |act(sum_k a_k h_kj) - sum_k a_k act(h_kj)|. A node is an output feature
    or channel; h_k includes each expert's BatchNorm between layer and activation. All other tensors
    are trimmed to `keep`. Signs are elected (ties go to +), and the update is scale * disjoint
    mean or sum.

    The network runs once: each layer is merged when the pass reaches it, and the pass continues
    with the merged layer. A weight that layers share is ranked and merged at the first of them.
    After transforms, the M-Loss is that of the transformed experts.

    Reference: Wang et al. 2025, "M-Loss", Algorithm 1. The published code differs from the
    paper: `layer_inputs="base"`, `reduce="square"`, `activation="gelu_tanh"`.

    Args:
        keep: Fraction kept by the node of lowest loss and in all other tensors, in [0, 1].
        spread: Fraction kept by the lowest-loss node minus the highest's, in [0, keep].
        layer_inputs: Activations that a layer sees, of the "merged" prefix or of the "base".
        reduce: Average of |D| ("abs") or of D^2 ("square") over samples and tokens.
        layers: Layers to rank: positions among the layers found, or names of modules; all layers
            found by default.
        node_order: "loss", or a control: "random" ranks, "uniform" ratio keep - spread / 2,
            "reversed" ranks.
        activation: Gelu, gelu_tanh, hardswish, quick_gelu, relu, relu6, silu or tanh in place of
            the model's own; required for named layers whose activation is not a module.
        combine: Disjoint "mean" or "sum".
        scale: Factor of the update.
        trim: Scope of the trim of other tensors, "per_tensor" or "global".
        seed: Seed of the random ranks.

    Raises:
        InputError: A value is out of bounds.

    Examples:
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
        >>> experts = {"a": {"0.weight": torch.tensor([[1.0], [4.0]])}}
        >>> experts["b"] = {"0.weight": torch.tensor([[3.0], [-2.0]])}
        >>> method = MTies(keep=1.0, spread=1.0)  # row 0 keeps everything, row 1 nothing
        >>> method({"0.weight": torch.zeros(2, 1)}, experts, model=model, batches=torch.ones(1, 1))
        {'0.weight': tensor([[2.],
                [0.]])}
    """

    keep: float = 0.2
    spread: float = 0.1
    layer_inputs: LayerInputs = "merged"
    reduce: Reduce = "abs"
    layers: Sequence[int | str] | None = None
    node_order: NodeOrder = "loss"
    activation: str | None = None
    combine: Combine = "mean"
    scale: float = 1.0
    trim: TrimScope = "per_tensor"
    seed: int = 0
    name: ClassVar[str] = "M-TIES"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(scale=self.scale)
        require_choice(get_args(Combine), combine=self.combine)
        require_choice(get_args(TrimScope), trim=self.trim)

    def updating(self, vectors: TaskVectors, keep_ratios: dict[str, Tensor]) -> Update:
        """Return the function that trims by row in ranked layers, plainly elsewhere, and merges."""
        trim = row_trim(vectors, keep_ratios, trimming(vectors, self.keep, self.trim))

        def update(span: Span, tile: Tensor) -> Tensor:
            trimmed = trim(span, tile)
            merged = disjoint_merge(trimmed, elect_signs(trimmed), self.combine)
            return merged.mul_(self.scale)

        return update


@dataclass
class _Ranking:
    """The state of one pass: losses and keep ratios of the layers so far."""

    method: RankedByMLoss
    vectors: TaskVectors
    losses: dict[str, Tensor] = field(default_factory=dict)
    keep_ratios: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._done: set[str] = set()
        self.update = self.method.updating(self.vectors, self.keep_ratios)

    def run(
        self,
        model: nn.Module,
        images: Tensor,
        layers: Iterable[tuple[AffineLayer, Activation]],
    ) -> None:
        """Pass the images through the network once, ranking each layer on the way."""
        first, state = tied_names(model), model.state_dict()
        own = {n: t for n, t in state.items() if t.is_floating_point() and first[n] == n}
        matched = match_names(own, self.vectors.base)
        self._stored = {n: matched[first[n]] for n in state if first[n] in matched}
        layout = {matched[name]: (t.dtype, tuple(t.shape)) for name, t in own.items()}
        self._running = InMemory(layout, next(iter(own.values())).device)
        ranked: dict[str, tuple[AffineLayer, Activation]] = {}  # stored weight to its first layer
        for layer, activation in layers:
            ranked.setdefault(self._stored[f"{layer.names[0]}.weight"], (layer, activation))
        ready = set(layout) - set(ranked) if self.method.layer_inputs == "merged" else set()
        for name in set(layout) - ready:
            self._running.write(name, 0, self.vectors.base[name].reshape(-1))
        self._merge(ready)
        visitors = {
            layer.names[0]: partial(self._visit, weight, layer, activation)
            for weight, (layer, activation) in ranked.items()
        }
        running = {name: self._running.tensors[matched[name]] for name in own}
        run_visiting(model, running, images, visitors)

    def _merge(self, names: Iterable[str]) -> None:
        """Merge tensors into the running network."""
        for name in names:
            merge_one(self.vectors, name, self.update, self._running)
            self._done.add(name)

    @property
    def merged(self) -> dict[str, Tensor]:
        """The tensors merged by the pass whose type in the network is the stored one."""
        return {
            name: self._running.tensors[name].to(self.vectors.device)
            for name in self._done
            if self._running.tensors[name].dtype == self.vectors.stored.dtype(name)
        }

    def _visit(
        self, weight: str, layer: AffineLayer, activation: Activation, inputs: Tensor
    ) -> None:
        """Rank the nodes of one layer at its inputs [n, ...]; then merge it in place."""
        self.losses[weight] = self._node_losses(layer, activation, inputs).cpu()
        self.keep_ratios[weight] = self._ratios(weight, self.losses[weight])
        if self.method.layer_inputs == "merged":
            self._merge([weight])

    def _node_losses(self, layer: AffineLayer, activation: Activation, inputs: Tensor) -> Tensor:
        """Return the M-Loss of every output feature or channel, in the widest type involved."""
        stacks = [
            {
                own: self.vectors.weights(self._stored[f"{name}.{own}"])
                for own in module.state_dict()
                if f"{name}.{own}" in self._stored
            }
            for name, module in zip(layer.names, layer.modules, strict=True)
        ]
        dtypes = [stack.dtype for part in stacks for stack in part.values()]
        dtype = reduce(torch.promote_types, dtypes, wide_dtype(inputs.dtype))
        inputs = unpadded(inputs).to(dtype)
        stacks = [{n: stack.to(inputs) for n, stack in part.items()} for part in stacks]
        if len(layer.modules) == 1 and isinstance(layer.modules[0], nn.Linear):
            weights, biases = stacks[0]["weight"], stacks[0].get("bias")
            rows = inputs.flatten(0, -2)
            return linear_node_m_loss(rows, weights, biases, activation, self.method.reduce)
        return affine_node_m_loss(layer, inputs, stacks, activation, self.method.reduce)

    def _ratios(self, weight: str, loss: Tensor) -> Tensor:
        keep, spread, order = self.method.keep, self.method.spread, self.method.node_order
        if order == "uniform":
            return torch.full(loss.shape, keep - spread / 2, dtype=torch.float64)
        if order == "random":
            loss = torch.rand(
                loss.shape,
                generator=generator_for(self.method.seed, self.vectors.stored.key(weight)),
            )
        return row_keep_ratios(-loss if order == "reversed" else loss, keep, spread)
