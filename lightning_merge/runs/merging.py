"""Merge the experts of a zoo into files whose metadata record their inputs and method."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from lightning_merge import __version__
from lightning_merge.core.checkpoints.checkpoint import open_checkpoint, save_checkpoint
from lightning_merge.core.cost import Cost, measured
from lightning_merge.core.facts import Needs
from lightning_merge.core.progress import detail
from lightning_merge.core.seeding import run_seed
from lightning_merge.data.datamodule import MergeDataModule
from lightning_merge.methods.base import MergeMethod, Method, Resources, Weights
from lightning_merge.methods.network import NetworkMethod, keep_statistics, save_network
from lightning_merge.methods.parts import identified
from lightning_merge.models.encoder import Encoder
from lightning_merge.modules.heads import fitting_heads, heads_hash
from lightning_merge.modules.held_out import BatchNorm, HeldOut, recalibrates
from lightning_merge.modules.zoo import Zoo

Merge = Callable[[MergeMethod, Resources], Weights]
"""Takes a method and what it needs besides the weights; returns merged weights."""


class Target(NamedTuple):
    """A file to write.

    Attributes:
        file: Its path; replaced if it exists.
        recalibrate: Give BatchNorm the statistics of held-out images.
        about: Extra metadata for this file.

    Examples:
        >>> Target(Path("merged.safetensors")).recalibrate
        False
    """

    file: Path
    recalibrate: bool = False
    about: Mapping[str, str] = {}


class ZooMerger:
    """Merges the experts of one zoo by any method.

    Args:
        zoo: Files of the base, experts and heads; all must exist.
        encoder: Architecture of the zoo, on the device where the network runs.
        base: Weights of the base under the encoder's names.
        experts: Weights of the experts by task, likewise.
        held_out: The images that methods may see.

    Examples:
        >>> from lightning_merge.methods import TaskArithmetic
        >>> from lightning_merge.models import MiniViT
        >>> encoder, data = MiniViT(), MergeDataModule(tasks=["mnist", "dtd"])
        >>> base = encoder.backbone.state_dict()
        >>> experts = {task: {n: t + 1 for n, t in base.items()} for task in data.tasks}
        >>> for name, weights in {"base": base, **experts}.items():
        ...     _ = save_checkpoint(weights, f"{name}.safetensors")
        >>> zoo = Zoo("base.safetensors", "{task}.safetensors", "heads.safetensors")
        >>> held_out = HeldOut(encoder, data, heads={})
        >>> merger = ZooMerger(zoo, encoder, base, experts, held_out)
        >>> cost, = merger.write(TaskArithmetic(0.25), [Target(Path("merged.safetensors"))])
        >>> merged = open_checkpoint("merged.safetensors")
        >>> merged.metadata["hyperparameters"]
        'TaskArithmetic(scale=0.25, transforms=())'
        >>> all(torch.allclose(merged[name], base[name] + 0.5) for name in base)
        True
    """

    def __init__(
        self,
        zoo: Zoo,
        encoder: Encoder,
        base: Weights,
        experts: Mapping[str, Weights],
        held_out: HeldOut,
    ) -> None:
        self.zoo, self.encoder, self.held_out = zoo, encoder, held_out
        self.base, self.experts = base, experts

    @classmethod
    def open(
        cls, zoo: Zoo, encoder: Encoder, data: MergeDataModule, device: torch.device
    ) -> "ZooMerger":
        """Open the files of a zoo.

        Args:
            zoo: Files of the base, experts and heads; all must exist.
            encoder: Architecture of the zoo.
            data: The tasks; methods may see their held-out images.
            device: Device to run the network on.

        Raises:
            InputError: Files do not fit.
        """
        base, experts = zoo.open(encoder.to(device), data.seen)
        heads = fitting_heads(zoo.heads, data, encoder)
        held_out = HeldOut(encoder, data, {task: head.to(device) for task, head in heads.items()})
        return cls(zoo, encoder, base, experts, held_out)

    def recalibrates(self, choice: BatchNorm) -> bool:
        """Return whether merged networks get BatchNorm statistics of held-out images."""
        return recalibrates(choice, self.encoder.backbone, self.base, self.experts.values())

    @torch.no_grad()
    def write(
        self,
        method: Method,
        targets: Sequence[Target],
        merge: Merge | None = None,
        going_on: bool | None = None,
    ) -> list[Cost]:
        """Merge the experts and write the result; return the cost of each file.

        A merge method is called once, no matter how many files receive its weights. A network
        method is called once per file, as it decides for itself where it needs the statistics.

        Args:
            method: A merge method or a network method; the run's seed is added to its own.
            targets: Files to write.
            merge: How to call a merge method; by default on base and experts.
            going_on: Whether the run was resumed; if so, existing files of the same merge are
                reused. If true or false, files record the cost of their merge; if None, they do
                not, so that equal merges give equal bytes.

        Raises:
            InputError: The method cannot merge them.
        """
        method, identity = identified(method, run_seed())
        about = {**identity, **self._describe(method)}
        if going_on:
            before = [_already(t.file, {**about, **t.about}) for t in targets]
            if len(costs := [cost for cost in before if cost is not None]) == len(targets):
                return costs
        self.encoder.load(self.zoo.base)
        given = self.held_out.resources(method)
        if isinstance(method, MergeMethod):
            call = partial(merge or self._merge, method, given)
            return self._write_weights(call, targets, about, going_on)
        assert isinstance(method, NetworkMethod)
        return self._write_networks(method, given, targets, about, going_on)

    def _describe(self, method: Method) -> dict[str, str]:
        """Return what the result of a method depends on besides itself, for its file's metadata."""
        tasks = tuple(self.experts)
        about = {
            "scope": "changed",
            "version": __version__,
            **self.zoo.hashes(tasks),
            **self.encoder.described,
        }
        needs = method.requirements().needs
        if Needs.INPUTS in needs:
            about["images"] = self.held_out.digest
        if Needs.HEADS in needs:
            about["heads"] = heads_hash(self.zoo.heads, tasks)
        return about

    def _write_weights(
        self,
        merge: Callable[[], Weights],
        targets: Sequence[Target],
        about: Mapping[str, str],
        going_on: bool | None,
    ) -> list[Cost]:
        with measured(self._device) as cost:
            merged = merge()
        for target in targets:
            weights = self.held_out.recalibrate(merged) if target.recalibrate else merged
            metadata = {**about, **target.about, **_recorded(cost, going_on)}
            save_checkpoint(self.zoo.named_as_base(weights), target.file, metadata=metadata)
        return [cost] * len(targets)

    def _merge(self, method: MergeMethod, given: Resources) -> Weights:
        return method.merge(self.base, self.experts, given)

    def _write_networks(
        self,
        method: NetworkMethod,
        given: Resources,
        targets: Sequence[Target],
        about: Mapping[str, str],
        going_on: bool | None,
    ) -> list[Cost]:
        costs = []
        for target in targets:
            statistics = self.held_out.recalibrate if target.recalibrate else keep_statistics
            with measured(self._device) as cost:
                network = method.merge(self.base, self.experts, given, statistics)
            cost.extra_parameters = network.extra_parameters
            cost.inference_cost = network.inference_cost
            metadata = {**about, **target.about, **_recorded(cost, going_on)}
            save_network(network, target.file, metadata=metadata)
            costs.append(cost)
        return costs

    @property
    def _device(self) -> torch.device:
        return next(self.encoder.parameters()).device


def _recorded(cost: Cost, going_on: bool | None) -> dict[str, str]:
    """Return the cost of a merge as metadata of its file."""
    if going_on is None:
        return {}
    return {key: repr(value) for key, value in asdict(cost).items() if value is not None}


def _already(path: Path, metadata: Mapping[str, str]) -> Cost | None:
    """Return the recorded cost of a merged file; None unless it exists with this metadata."""
    if not path.exists():
        return None
    known = open_checkpoint(path).metadata
    if "seconds" not in known or not metadata.items() <= known.items():
        return None
    detail(f"{path} is merged already")
    values = {key: json.loads(known[key]) for key in asdict(Cost()) if key in known}
    return Cost(**values)
