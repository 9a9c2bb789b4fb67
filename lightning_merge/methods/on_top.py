"""Methods that merge by another one, and return a network with something on top of the weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import nn

from lightning_merge.core.errors import InputError
from lightning_merge.core.facts import Facts
from lightning_merge.methods.base import MergeMethod, Origin, Resources, Weights
from lightning_merge.methods.network import NetworkMethod, Recalibrate, own_names
from lightning_merge.methods.parts import with_transforms
from lightning_merge.methods.task_arithmetic import TaskArithmetic


@dataclass(frozen=True)
class OnTop(NetworkMethod):
    """A method on top of one that merges weights; its own transforms precede that one's.

    Args:
        method: Method that merges the weights.

    Attributes:
        does: What it does to the merged network, for messages.

    Raises:
        InputError: The method returns a network.

    Examples:
        >>> from lightning_merge.methods import EMR, Surgery
        >>> Surgery(EMR())
        Traceback (most recent call last):
            ...
        lightning_merge.core.errors.InputError: method=EMR: Surgery corrects ...
    """

    does: ClassVar[str]

    method: MergeMethod = field(default_factory=TaskArithmetic)

    def __post_init__(self) -> None:
        if not isinstance(self.method, MergeMethod):
            raise InputError(
                f"method={type(self.method).__name__}: {type(self).__name__} {self.does}; choose a "
                "method that merges weights, for example TaskArithmetic"
            )

    def requirements(self) -> Facts:
        """Return the facts, combined with those of the wrapped method."""
        own, inner = self.facts, self.method.requirements()
        return replace(
            own,
            needs=own.needs | inner.needs,
            readings=own.readings + inner.readings,
            on_top=False,
            work=", ".join(filter(None, [inner.work, own.work])),
            memory=inner.memory,
        )

    def merged(
        self,
        model: nn.Module,
        base: Weights,
        experts: Mapping[str, Weights],
        given: Resources,
        recalibrate: Recalibrate,
    ) -> Weights:
        """Return the merged weights under the model's names, with their BatchNorm statistics."""
        method = with_transforms(self.method, self.transforms)
        return recalibrate(own_names(model, method.merge(base, experts, given)))

    def origin(self) -> Origin:
        """Return what the wrapped method learned before merging."""
        return self.method.origin()
