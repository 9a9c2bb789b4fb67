"""Fisher merging: an average weighted by how important each parameter is to each expert."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from lightning_merge.core.checks import require_choice, require_in
from lightning_merge.core.errors import InputError, first_line
from lightning_merge.core.facts import Facts, Needs
from lightning_merge.core.networks.expert_networks import ExpertNetworks, mean_of, run_with
from lightning_merge.core.networks.fisher import Labels, fisher_diagonal
from lightning_merge.core.networks.tracing import evaluating
from lightning_merge.core.seeding import uniform_numbers
from lightning_merge.core.vectors.task_vectors import TaskVectors
from lightning_merge.core.vectors.tiles import Span
from lightning_merge.methods.base import MergeMethod, Resources, Update


@dataclass(frozen=True)
class Fisher(MergeMethod):
    """Mean of the experts weighted with their diagonal Fisher information.

    theta_0 + sum_k F_k tau_k / sum_k F_k for every entry, where F_k is `epsilon` plus the mean,
    over unlabelled inputs x of task k, of E_y (d log p_k(y | x) / d theta)^2. Gradients are of
    single samples, with labels y predicted by the expert. Entries without information from any
    expert, such as tensors outside the network, are averaged.

    A tensor that the network uses twice has one gradient. After transforms, the information is
    that of the transformed experts.

    Cost: three readings (2K + 1 with transforms), and for each expert one pass over its own
    inputs, forward once and backward once per class ("expected") or once. Memory holds two
    networks of sums, one expert and the gradients of a few samples.

    Reference: Matena and Raffel 2022, "Merging Models with Fisher-Weighted Averaging". Published
    code for CLIP and language models instead squares the gradient of a whole batch, summed over
    classes with weights sqrt(p), which adds cross terms and is not the Fisher information.

    Args:
        labels: "expected", "predicted" or "sampled", see `fisher_diagonal`.
        epsilon: Information added to every entry, as published.
        normalize: Divide each expert's information by its L2 norm over all parameters, so that
            all experts have the same total weight.
        seed: Seed of the sampled labels.

    Raises:
        InputError: A value is out of bounds, or an expert's information is not finite.

    Examples:
        >>> from torch import nn
        >>> model, heads = nn.Linear(2, 2, bias=False), {"a": nn.Identity(), "b": nn.Identity()}
        >>> base = {"weight": torch.zeros(2, 2)}
        >>> experts = {"a": {"weight": torch.ones(2, 2)}, "b": {"weight": torch.full((2, 2), 3.0)}}
        >>> images = {"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([[0.0, 1.0]])}
        >>> Fisher()(base, experts, model=model, batches=images, heads=heads)["weight"]
        tensor([[1.0000, 3.0000],
                [1.0000, 3.0000]])
    """

    labels: Labels = "expected"
    epsilon: float = 1e-6
    normalize: bool = False
    seed: int = 0
    facts: ClassVar[Facts] = Facts(
        reference="Matena and Raffel 2022",
        arxiv="2111.09832",
        needs=Needs.INPUTS_OF_EVERY_TASK | Needs.HEADS,
        readings=3,
        work="K forward passes and, per class, backward passes over own inputs",
        memory="3 networks",
    )

    def __post_init__(self) -> None:
        require_choice(get_args(Labels), labels=self.labels)
        require_in("[0, 1]", epsilon=self.epsilon)

    def plan(self, vectors: TaskVectors, resources: Resources) -> Update:
        """Sum the information of all experts and the task vectors weighted with it."""
        inputs = resources.task_inputs("Fisher", vectors.tasks)
        for task in vectors.tasks:
            resources.head("Fisher", task)
        networks = ExpertNetworks(resources.network("Fisher"), vectors)
        networks.check(next(iter(inputs.values())))
        totals: dict[str, Tensor] = {}
        weighted: dict[str, Tensor] = {}
        for index, task in enumerate(vectors.tasks):
            information = self._information(networks, resources, index, inputs[task])
            for name in networks.merged:
                stored, part = networks.stored[name], information.pop(name).flatten()
                vector = networks.task_vector(name, index).flatten()
                part = part.to(vector)
                weighted[stored] = weighted.get(stored, 0) + part * vector
                totals[stored] = totals.get(stored, 0) + part
                _check_finite(totals[stored], task, stored)
        return _divide(weighted, totals)

    def _information(
        self, networks: ExpertNetworks, resources: Resources, index: int, inputs: Tensor
    ) -> dict[str, Tensor]:
        """Return the Fisher information of one expert, by the network's names."""
        task, model = networks.vectors.tasks[index], networks.model
        head, state = resources.head("Fisher", task), networks.expert(index)

        def logits(parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
            return head(resources.project(run_with(model, {**state, **parameters}, images)))

        parameters = {name: state[name] for name in networks.merged}
        draws = uniform_numbers(0, len(inputs), self.seed, task)
        with evaluating(model), evaluating(head):
            try:
                diagonal = fisher_diagonal(logits, parameters, inputs, self.labels, draws)
            except FloatingPointError as fault:
                raise InputError(
                    f"heads, batches: {task}: {fault}; look for what overflows, or run the network "
                    "in float32"
                ) from fault
            except RuntimeError as fault:
                if "vmap" not in str(fault):
                    raise
                raise InputError(
                    f"model={type(model).__name__}: Fisher runs it with weights of its own for "
                    f"every input, which its code does not allow ({first_line(fault)}); choose "
                    "another method"
                ) from fault
        norm = sum(float(f.double().square().sum()) for f in diagonal.values()) ** 0.5
        divisor = norm + self.epsilon if self.normalize and norm else 1.0
        return {name: f.add_(self.epsilon).div_(divisor) for name, f in diagonal.items()}


def _check_finite(total: Tensor, task: str, name: str) -> None:
    """Check that the running sum of information is finite.

    Raises:
        InputError: It is not; names the task last added and the tensor.
    """
    if not bool(total.isfinite().all()):
        raise InputError(
            f"heads, batches: the Fisher information of {task} about {name} is NaN or infinite; "
            "look for overflowing logits, or run the network in float32"
        )


def _divide(weighted: dict[str, Tensor], totals: dict[str, Tensor]) -> Update:
    """Return the function that divides the sums, and averages where the divisor is 0."""

    def update(span: Span, tile: Tensor) -> Tensor:
        average = mean_of(tile)
        if span.name not in totals:
            return average
        run = slice(span.start, span.stop)
        total = totals[span.name][run]
        known = total > torch.finfo(total.dtype).tiny
        return torch.where(known, weighted[span.name][run] / total, average)

    return update
