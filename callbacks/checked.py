"""Callbacks that check, before any long work, that they fit the run."""

from abc import abstractmethod
from typing import Any

from lightning.pytorch import Callback, Trainer

from lightning_merge.core.errors import InputError
from lightning_merge.core.ranks import Ranks
from lightning_merge.modules.coefficients import CoefficientModule


class CheckedCallback(Callback):
    """A callback of `fit` that checks the run before training begins.

    Examples:
        >>> class OneDevice(CheckedCallback):
        ...     def check(self, trainer, module):
        ...         if trainer.num_devices > 1:
        ...             raise ValueError(f"trainer.devices={trainer.num_devices}: give 1")
        >>> OneDevice().setup(Trainer(devices=1, accelerator="cpu", logger=False), None, "fit")
    """

    @abstractmethod
    def check(self, trainer: Trainer, module: Any) -> None:
        """Check what can be checked before any file is opened.

        Raises:
            InputError: The module or another callback is incompatible with this one.
        """

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Run the check before training; an error in one process stops them all."""
        if stage == "fit":
            with Ranks.of(trainer).agreed():
                self.check(trainer, pl_module)


class CoefficientCallback(CheckedCallback):
    """A callback for modules that learn merging coefficients from a base and experts.

    Examples:
        >>> from lightning_merge.models import MiniViT
        >>> from lightning_merge.modules import AdaMerging, FineTune
        >>> from lightning_merge.modules.zoo import Zoo
        >>> zoo = Zoo("base.safetensors", "{task}.safetensors", "heads.safetensors")
        >>> CoefficientCallback().check(Trainer(logger=False), AdaMerging(MiniViT(), zoo))
    """

    def check(self, trainer: Trainer, module: Any) -> None:
        """Check that the module has experts and learns coefficients.

        Raises:
            InputError: It does not.
        """
        if not isinstance(module, CoefficientModule):
            raise InputError(
                f"trainer.callbacks: {type(module).__name__} learns no coefficients and merges no "
                f"experts; use {type(self).__name__} with a module that does, such as "
                "StatsMerging or AdaMerging"
            )
