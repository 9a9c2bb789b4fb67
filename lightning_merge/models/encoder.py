"""The interface of encoders: a backbone, its preprocessing and the feature width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_merge.core.checkpoints import hub
from lightning_merge.core.checkpoints.activation import KEY
from lightning_merge.core.checkpoints.checkpoint import Checkpoint
from lightning_merge.core.checkpoints.library import Library
from lightning_merge.core.errors import InputError, first_line
from lightning_merge.models.activation import Activation
from lightning_merge.models.loading import CheckpointLike, fitting
from lightning_merge.models.memory_format import MemoryFormat, arrange
from lightning_merge.models.preprocess import Preprocess


class Encoder(nn.Module):
    """An encoder of images or texts whose backbone is what gets merged.

    The names in ``backbone.state_dict()`` are the names of checkpoints, task vectors and
    coefficients. A subclass builds its backbone and passes it to this constructor.

    The encoder starts in eval mode. BatchNorm layers stay in it even during training, so that all
    experts share the statistics of their base, unless ``update_statistics`` is set (needed for
    pretraining from scratch).

    Args:
        backbone: Maps inputs [n, ...], one tensor, to features [n, dim]: normalised float images
            [n, 3, s, s], or token ids.
        preprocess: Preprocessing of its examples.
        dim: Width of the features.
        memory_format: Layout in which the backbone gets images: contiguous, channels_last, or auto,
            channels_last if more than half of its parameters are weights of 2-D convolutions, which
            it makes faster. Weights stay contiguous in any case.

    Attributes:
        reads: Names of the constructor's options that may name files, folders or repositories of
            the Hub; subclasses override it.
        exact_match: Whether to measure which answers the network writes, see `T5Encoder`.
        ranks: Whether features are already scores of the classes, so that heads have no weights.
        library: Library that the network is from; None for one of this package.
        spare: Tensors that files of another library lack for the same tower, by name.
        activation: Activation of the backbone, if weights alone do not determine it.

    Examples:
        >>> import torch
        >>> from lightning_merge.models.image_preprocess import ImagePreprocess
        >>> class Flat(Encoder):
        ...     def __init__(self):
        ...         preprocess = ImagePreprocess(size=2, mean=(0, 0, 0), std=(1, 1, 1))
        ...         super().__init__(nn.Flatten(), preprocess, dim=12)
        >>> Flat()(torch.ones(5, 3, 2, 2)).shape
        torch.Size([5, 12])
    """

    reads: ClassVar[Sequence[str]] = ("weights",)
    update_statistics: bool = False
    exact_match: bool = False
    ranks: ClassVar[bool] = False
    library: ClassVar[Library | None] = None
    spare: Mapping[str, Tensor] = MappingProxyType({})
    activation: Activation | None = None

    def __init__(
        self,
        backbone: nn.Module,
        preprocess: Preprocess,
        dim: int,
        memory_format: MemoryFormat = "auto",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.preprocess = preprocess
        self.dim = dim
        self.memory_format = arrange(backbone, memory_format)
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features [n, dim] of inputs [n, ...]."""
        return self.project(self.backbone(inputs))

    def width(self, shape: Sequence[int]) -> int:
        """Return the width of the features of inputs [n, *shape]; `dim` unless overridden."""
        return self.dim

    def functional(self, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return the features with the backbone's tensors replaced by ``state``.

        Gradients flow into ``state``; the encoder itself is unchanged. In training mode, new
        statistics are written into ``state`` only if ``update_statistics`` is set.

        Args:
            state: Tensors under exactly the names of ``backbone.state_dict()``.
            inputs: Inputs of the backbone [n, ...].

        Raises:
            RuntimeError: A name is missing or unknown.
        """
        tensors = {**self._constants(), **state}
        pooled = functional_call(self.backbone, tensors, (inputs,), strict=True, tie_weights=False)
        return self.project(pooled)

    def project(self, pooled: Tensor) -> Tensor:
        """Map the backbone's output to features; the identity unless overridden."""
        return pooled

    def train(self, mode: bool = True) -> Encoder:
        """Set training mode, leaving BatchNorm in eval unless ``update_statistics`` is set."""
        super().train(mode)
        if mode and not self.update_statistics:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def load(self, source: CheckpointLike) -> Encoder:
        """Load the backbone's weights, all of them and no others.

        A file may also hold other modules, such as a text tower or a classifier. The names of a
        CLIP may be those of open_clip (and OpenAI) or transformers.

        Args:
            source: A checkpoint file or folder, or a mapping from names to tensors.

        Returns:
            This encoder.

        Raises:
            InputError: The file cannot be read or holds another architecture; the message lists
                tensors that are missing, left over or of another shape.
        """
        self.backbone.load_state_dict(self.fitting(source))
        return self

    def fitting(self, source: CheckpointLike) -> Checkpoint:
        """Return the weights that `load` would load, lazily, under the backbone's names.

        Args:
            source: See `load`.

        Raises:
            InputError: See `load`.
        """
        if self.activation is not None and not isinstance(source, Mapping):
            self.activation.check(source)
        return fitting(self.backbone, source, spare=self.spare)

    def check_size(self) -> None:
        """Check that the backbone takes images of the size to which they are preprocessed.

        Raises:
            InputError: It does not, or would leave out a margin that fills no patch.
        """
        size, kind = self.preprocess.shape()[-1], type(self.backbone).__name__
        if size % (patch := _patch_of(self.backbone)):
            raise InputError(f"image_size={size} must be a multiple of the patch's side, {patch}")
        try:
            with torch.no_grad():
                self(torch.zeros(1, 3, size, size))
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as fault:
            raise InputError(
                f"image_size={size}: {kind} takes no images of this side "
                f"({first_line(fault)}); give "
                "another, or leave it out"
            ) from fault

    @classmethod
    def files(cls, options: Mapping[str, Any]) -> list[str]:
        """Return the files, folders and repositories that an encoder with these options reads.

        Args:
            options: Options of the constructor by name.

        Examples:
            >>> from lightning_merge.models import MiniViT
            >>> MiniViT.files({"width": 64, "weights": None})
            []
        """
        named = [options.get(name) for name in cls.reads]
        return [name for name in named if isinstance(name, str) and hub.exists(name)]

    def writing(self) -> AbstractContextManager[None]:
        """Let the network say within a block which answers it writes; see `exact_match`.

        Raises:
            NotImplementedError: It writes none.
        """
        raise NotImplementedError

    @property
    def features_of(self) -> str:
        """What features depend on besides weights, such as the size of the images."""
        return repr(self.preprocess)

    @property
    def described(self) -> dict[str, str]:
        """Metadata that describes the network, saved with the backbone's weights."""
        return {} if self.activation is None else {KEY: self.activation.kind}

    def _constants(self) -> dict[str, Tensor]:
        """Return the backbone's non-persistent buffers, such as position indices."""
        persistent = set(self.backbone.state_dict())
        buffers = self.backbone.named_buffers()
        return {name: buffer for name, buffer in buffers if name not in persistent}


def _patch_of(backbone: nn.Module) -> int:
    """Return the side of the patches into which a network cuts its images; 1 if it does not."""
    for module in backbone.modules():
        size = getattr(module, "patch_size", None)
        side = size[0] if isinstance(size, (tuple, list)) else size
        for part in module.modules() if isinstance(side, int) else ():
            if isinstance(part, nn.Conv2d) and part.in_channels == 3 and part.stride[0] == side:
                return side
    return 1
